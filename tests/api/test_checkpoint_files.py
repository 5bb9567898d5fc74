"""`mom.files.folders`: a folder is there wholly or not at all, whatever fails; damage is found and named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

import mom.files.atomic as atomic
import mom.files.folders as folders
from mom.errors import CheckpointError
from mom.files.folders import (
    clean_leftovers,
    latest_valid,
    read_manifest,
    rotate,
    verify_folder,
    write_file,
    write_folder,
)

FILES = {"config.json": "{}", "weights.bin": bytes(range(256)) * 10, "streamed": lambda file: file.write(b"abc" * 1000)}


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writes_files_and_manifest(tmp_path):
    path = tmp_path / "deep" / "step-1"
    manifest = write_folder(path, FILES)
    assert sorted(os.listdir(path)) == ["config.json", "manifest.json", "streamed", "weights.bin"]
    assert (path / "streamed").read_bytes() == b"abc" * 1000
    assert manifest == read_manifest(path) == verify_folder(path)
    assert manifest["files"]["streamed"]["size"] == 3000
    assert os.listdir(path.parent) == ["step-1"]


def test_replaces_a_folder_of_the_same_name(tmp_path):
    write_folder(tmp_path / "last", FILES)
    write_folder(tmp_path / "last", {"config.json": "new"})
    assert sorted(os.listdir(tmp_path / "last")) == ["config.json", "manifest.json"]
    assert os.listdir(tmp_path) == ["last"]


def failing_content(error):
    def write(file):
        file.write(b"half of it")
        raise error

    return write


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_failing_content_leaves_everything_as_it_was(tmp_path, existing, error):
    path = tmp_path / "step-1"
    if existing:
        write_folder(path, FILES)
    before = snapshot(tmp_path)
    with pytest.raises(type(error)) as caught:
        write_folder(path, {**FILES, "last": failing_content(error)})
    assert snapshot(tmp_path) == before
    assert os.listdir(tmp_path) == (["step-1"] if existing else [])
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename.endswith("last")


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("function", "calls"), [("fsync", 5), ("rename", 2)])
def test_failing_system_call_leaves_everything_as_it_was(tmp_path, monkeypatch, existing, function, calls):
    path = tmp_path / "step-1"
    if existing:
        write_folder(path, FILES)
    before = snapshot(tmp_path)
    real = getattr(os, function)
    if function == "rename":
        monkeypatch.setattr(atomic, "_exchange", lambda one, two: False)  # as where the system cannot exchange folders
    for failing in range(calls - (function == "rename" and not existing)):
        made = []

        def call(*arguments, made=made, failing=failing):
            made.append(arguments)
            if len(made) == failing + 1:
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, call)
            with pytest.raises(OSError, match="Input/output error"):
                write_folder(path, {"config.json": "new", "other": "x"})
        assert snapshot(tmp_path) == before
        assert os.listdir(tmp_path) == (["step-1"] if existing else [])


def test_a_really_full_file_system_is_reported(tmp_path):
    """The operating system refuses to write beyond a limit: no part of the folder stays."""
    if os.name != "posix":
        pytest.skip("needs resource limits")
    code = (
        "import resource, signal, sys; from mom.files.folders import write_folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_folder(sys.argv[1], {'small': b'x', 'large': bytes(1_000_000)})\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    # The package itself needs the compiled core; a bare namespace of the same path does not.
    package = Path(folders.__file__).parents[1]
    bare = f"import sys, types; m = types.ModuleType('mom'); m.__path__ = [{str(package)!r}]; sys.modules['mom'] = m\n"
    result = subprocess.run(
        [sys.executable, "-c", bare + code, str(tmp_path / "step-1")], capture_output=True, text=True, check=True
    )
    number, _, name = result.stdout.strip().partition(" ")
    assert int(number) == errno.EFBIG and name.endswith("large")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "manifest.json", "a\0b"])
def test_file_names_are_checked(tmp_path, name):
    with pytest.raises(CheckpointError, match="files: "):
        write_folder(tmp_path / "x", {name: b""})
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(CheckpointError, match="x: exists and is not a folder"):
        write_folder(tmp_path / "x", FILES)


def damage_missing(path):
    (path / "weights.bin").unlink()
    return "weights.bin: missing"


def damage_truncated(path):
    os.truncate(path / "weights.bin", 100)
    return "weights.bin: 100 bytes, expected 2560"


def damage_flipped(path):
    data = bytearray((path / "weights.bin").read_bytes())
    data[1234] ^= 1
    (path / "weights.bin").write_bytes(data)
    return "weights.bin: content differs from its SHA-256"


def damage_manifest(content):
    def damage(path):
        (path / "manifest.json").write_bytes(content)
        return "manifest.json: "

    return damage


def damage_no_manifest(path):
    (path / "manifest.json").unlink()
    return "manifest.json: no such file"


DAMAGES = [
    damage_missing, damage_truncated, damage_flipped, damage_no_manifest,
    *map(damage_manifest, [
        b"", b"{", b"\xff", b"[]", b"{}", b'{"format": 2, "files": {}}', b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"../x": {"size": 1, "sha256": ""}}}', b'{"format": 1, "files": {"x": {}}}',
        b'{"format": 1, "files": {"x": {"size": "1", "sha256": ""}}}', b"[" * 100_000,
    ]),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_passed_over(tmp_path, damage):
    for step in (5, 10, 20):
        write_folder(tmp_path / f"step-{step}", FILES)
    message = damage(tmp_path / "step-20")
    with pytest.raises(CheckpointError) as caught:
        verify_folder(tmp_path / "step-20")
    assert message in str(caught.value) and "step-20" in str(caught.value)
    path, passed_over = latest_valid(tmp_path)
    assert path == tmp_path / "step-10"
    assert passed_over == [(tmp_path / "step-20", str(caught.value))]


def test_sizes_alone_can_be_checked(tmp_path):
    write_folder(tmp_path / "x", FILES)
    damage_flipped(tmp_path / "x")
    verify_folder(tmp_path / "x", hashes=False)


def test_latest_valid_goes_by_number_and_ignores_others(tmp_path):
    assert latest_valid(tmp_path / "absent") == (None, [])
    assert latest_valid(tmp_path) == (None, [])
    for name in ("step-9", "step-10", "step-x", "best-99", "xstep-50"):
        write_folder(tmp_path / name, FILES)
    (tmp_path / "step-11").write_text("a file")
    assert latest_valid(tmp_path) == (tmp_path / "step-10", [])
    assert latest_valid(tmp_path, prefix="best-") == (tmp_path / "best-99", [])


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_dead_writers_are_cleaned(tmp_path):
    write_folder(tmp_path / "step-1", FILES)
    pid = dead_process()
    for kind in ("tmp", "drop", "old"):
        (tmp_path / f".step-1.{kind}-{pid}-00000000").mkdir()
    (tmp_path / f".step-2.tmp-{os.getpid()}-00000000").mkdir()  # the number of this process, before a restart
    (tmp_path / f".file.tmp-{pid}-00000000").write_text("x")
    (tmp_path / ".mine.tmp").write_text("x")
    assert latest_valid(tmp_path) == (tmp_path / "step-1", [])
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "step-1"]
    verify_folder(tmp_path / "step-1")


def test_death_between_two_renames_loses_nothing(tmp_path):
    write_folder(tmp_path / "step-1", FILES)
    before = snapshot(tmp_path)
    os.rename(tmp_path / "step-1", tmp_path / f".step-1.old-{dead_process()}-01234567")
    assert latest_valid(tmp_path) == (tmp_path / "step-1", [])
    assert snapshot(tmp_path) == before


def test_living_writers_are_let_alone(tmp_path):
    other = tmp_path / f".step-3.tmp-{os.getppid()}-00000000"
    other.mkdir()

    def look(file):
        assert clean_leftovers(tmp_path) == []
        file.write(b"x")

    write_folder(tmp_path / "step-2", {"x": look})
    assert sorted(os.listdir(tmp_path)) == [other.name, "step-2"]


def test_rotation_keeps_the_newest(tmp_path):
    for step in range(1, 6):
        write_folder(tmp_path / f"step-{step}", FILES, keep_last=2)
        assert len(os.listdir(tmp_path)) == min(step, 2)
    assert sorted(os.listdir(tmp_path)) == ["step-4", "step-5"]


def test_rotation_counts_only_complete_folders_and_protects_the_new_one(tmp_path):
    for step in (10, 20, 30, 40):
        write_folder(tmp_path / f"step-{step}", FILES)
    damage_truncated(tmp_path / "step-40")
    assert rotate(tmp_path, 2) == [tmp_path / "step-10"]
    assert sorted(os.listdir(tmp_path)) == ["step-20", "step-30", "step-40"]
    write_folder(tmp_path / "step-5", FILES, keep_last=1)
    assert sorted(os.listdir(tmp_path)) == ["step-30", "step-40", "step-5"]
    for call in (lambda: rotate(tmp_path, 0), lambda: write_folder(tmp_path / "x", {}, keep_last=0)):
        with pytest.raises(CheckpointError, match="keep_last: 0"):
            call()


def test_write_file_replaces_atomically(tmp_path):
    path = tmp_path / "a.json"
    assert write_file(path, "one")["size"] == 3
    with pytest.raises(ValueError, match="x"):
        write_file(path, failing_content(ValueError("x")))
    assert path.read_text() == "one"
    write_file(path, lambda file: file.write(b"two"))
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(FileNotFoundError, match="The folder does not exist: .*nowhere'$"):
        write_file(tmp_path / "nowhere" / "a.json", "one")


def test_large_files_are_streamed(tmp_path):
    block = bytes(1 << 16)

    def write(file):
        for _ in range(512):
            file.write(block)

    tracemalloc.start()
    write_folder(tmp_path / "x", {"large": write})
    verify_folder(tmp_path / "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "x" / "large").stat().st_size == 1 << 25
    assert peak < 3_000_000


def test_manifest_is_plain_json(tmp_path):
    write_folder(tmp_path / "x", {"a": b"hello"})
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    expected = {"format": 1, "files": {"a": {"size": 5, "sha256": sha256}}}
    assert json.loads((tmp_path / "x" / "manifest.json").read_text()) == expected


def test_what_cannot_be_written_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="model: .*file is not a folder"):
        folders.check_replaceable(tmp_path / "file" / "run" / "model")
    with pytest.raises(CheckpointError, match="file: exists and is not a folder"):
        folders.check_replaceable(tmp_path / "file")
    folders.check_replaceable(tmp_path / "new" / "run" / "model")
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)  # tests may run as root, whom nothing stops
    with pytest.raises(CheckpointError, match=f"model: {tmp_path} cannot be written to"):
        folders.check_replaceable(tmp_path / "new" / "run" / "model")


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds 'thesis.txt'"):
        folders.write_folder(folder, {"a.txt": "new"})
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is the current folder"):
        folders.write_folder(".", {"a.txt": "new"})


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    folders.write_folder(tmp_path / "link", {"a.txt": "new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "a.txt").read_text() == "new"
