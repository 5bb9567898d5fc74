"""Documents out of compressed files and archives."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mom.data import Documents
from mom.errors import DataError

TEXTS = ["first\nwith two lines", "zweiter, größer", "x" * 300_000]


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        archive.addfile(link)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def read(documents: Documents) -> list[str]:
    texts, parts = [], []
    for piece in documents:
        parts.append(piece.text)
        if piece.end:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


@pytest.mark.parametrize("ending", PACKERS)
def test_texts_and_json_lines_may_be_compressed(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.txt{ending}").write_bytes(PACKERS[ending](TEXTS[1].encode()))
    (tmp_path / f"b.jsonl{ending}").write_bytes(PACKERS[ending](lines(*TEXTS)))
    documents = Documents(tmp_path)
    for _ in range(2):
        assert read(documents) == [TEXTS[1], *TEXTS]
        assert documents.report.bytes_read == documents.total_bytes and documents.report.files == 2


@pytest.mark.parametrize("ending", PACKERS)
def test_archives_are_read_in_their_own_order(tmp_path: Path, ending: str) -> None:
    files = {"z/b.txt": TEXTS[0].encode(), "a.jsonl": lines(*TEXTS[1:]), "notes.pdf": b"%PDF", "empty.txt": b"",
             "deep/er/c.txt.gz": gzip.compress(TEXTS[2].encode())}  # fmt: skip
    path = tmp_path / f"texts.tar{ending}"
    path.write_bytes(PACKERS[ending](tar(files)))
    for source in (path, tmp_path):
        documents = Documents(source)
        assert read(documents) == [TEXTS[0], *TEXTS[1:], TEXTS[2]]
        report = documents.report
        assert (report.documents, report.empty, report.ignored_files, report.files) == (4, 1, 1, 1)


def test_tgz_is_an_archive(tmp_path: Path) -> None:
    (tmp_path / "t.tgz").write_bytes(gzip.compress(tar({"a.txt": b"text"})))
    assert read(Documents(tmp_path / "t.tgz")) == ["text"]


def test_archives_of_archives_as_openwebtext_has_them(tmp_path: Path) -> None:
    subsets = {
        f"openwebtext/urlsf_subset{i:02}-1_data.xz": lzma.compress(
            tar({f"{j}.txt": f"{i}.{j}".encode() for j in range(3)})
        )
        for i in range(2)
    }
    (tmp_path / "openwebtext.tar.xz").write_bytes(lzma.compress(tar(subsets)))
    texts = [f"{i}.{j}" for i in range(2) for j in range(3)]
    assert read(Documents(tmp_path)) == texts
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for name, data in subsets.items():
        (unpacked / Path(name).name).write_bytes(data)
    (unpacked / "other.xz").write_bytes(lzma.compress(b"no archive"))
    documents = Documents(unpacked)
    assert read(documents) == texts and documents.report.ignored_files == 1
    assert read(Documents(unpacked / "urlsf_subset01-1_data.xz")) == texts[3:]
    with pytest.raises(DataError, match=r"other\.xz: unknown kind of file"):
        Documents(unpacked / "other.xz")


@pytest.mark.parametrize(
    "name", ["a.txt.gz", "a.txt.xz", "a.txt.zst", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.zst", "a.tgz"]
)
@pytest.mark.parametrize("damage", ["short", "other"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    content = "".join(f"line {i * i}\n" for i in range(20_000)).encode()
    data = tar({"b.txt": content}) if ".t" in name and "txt" not in name else content
    for ending, pack in PACKERS.items():
        if ending and name.endswith(ending) or name.endswith(".tgz") and ending == ".gz":
            data = pack(data)
    path = tmp_path / name
    path.write_bytes(data[: len(data) // 2] if damage == "short" else b"nothing of the kind" * 100)
    with pytest.raises(DataError, match=rf"{name}: truncated or corrupted \w+ file"):
        read(Documents(path))
    good = tmp_path / "good.txt"
    good.write_text("good")
    with pytest.warns(UserWarning, match="1 unreadable records left out"):
        assert read(Documents([path, good], on_error="skip"))[-1] == "good"


def test_faults_within_an_archive_name_the_place(tmp_path: Path) -> None:
    files = {"a.txt": b"good", "folder/b.txt": b"one\n\xff\n", "c.jsonl": b'{"body": 1}\n'}
    (tmp_path / "t.tar").write_bytes(tar(files))
    with pytest.raises(DataError, match=r"t\.tar/folder/b\.txt: line 2: not UTF-8"):
        read(Documents(tmp_path))
    with pytest.warns(UserWarning, match="2 unreadable records"):
        assert read(Documents(tmp_path, on_error="skip")) == ["good", "one\n"]


def test_several_frames_of_zst_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd(b"one ") + zstd(b"two " * 100_000) + zstd(b"") + zstd(b"three"))
    assert read(Documents(tmp_path)) == ["one " + "two " * 100_000 + "three"]


def test_archives_within_archives_have_an_end(tmp_path: Path) -> None:
    data = tar({"a.txt": b"text"})
    for depth in range(6):
        data = tar({f"{depth}.tar": data})
    (tmp_path / "t.tar").write_bytes(data)
    with pytest.raises(DataError, match="more than 4 archives within each other"):
        read(Documents(tmp_path))


def test_without_the_package_zst_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"data")
    with pytest.raises(ImportError, match=r"A file that ends in \.zst needs the package zstandard"):
        read(Documents(tmp_path))
