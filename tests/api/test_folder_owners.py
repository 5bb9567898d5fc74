"""Who owns a folder: locks, writers that are killed, readers that cannot read, and names of every length."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mom
from killed import killed_at
from mom.data import TextDocuments, TokenFile
from mom.data.prepare import prepare, read_meta
from mom.errors import CheckpointError, DataError, MomError, TrainingError
from mom.files import atomic, folders
from mom.files.atomic import clean_leftovers, replacing_files
from mom.files.folders import latest_valid, verify_folder, write_file, write_folder
from mom.files.locks import LOCK_FILE, lock_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
CONFIG = mom.MoMConfig.preset("demo", vocab_size=300, n_embd=16, n_head=2, router_dim=8, n_positions=16)
OLD, NEW = {"a": "old", "b": b"old" * 1000}, {"a": "new", "c": b"new" * 1000}
NAMES = ("train.bin", "val.bin", "meta.json")


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---------------------------------------------------------------------- killed writers
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("exchange", [True, False])
def test_a_killed_save_leaves_the_old_or_the_new_folder(tmp_path: Path, exchange: bool, after: bool) -> None:
    path, number, seen = tmp_path / "model", 0, set()
    patches = {} if exchange else {"_exchange": lambda one, two: False}
    while True:
        number += 1
        write_folder(path, OLD)
        if not killed_at(number, after, lambda: write_folder(path, NEW), patches):
            break
        if exchange or path.exists():
            seen.add((path / "a").read_text())
            verify_folder(path)
        else:
            with pytest.raises(CheckpointError, match="earlier version in .model.old-.* rename that to model"):
                mom.MoM.from_pretrained(path)
        # A writer of another name lets the leftovers be, the next writer of this name deals with them.
        before = sorted(os.listdir(tmp_path))
        write_folder(tmp_path / "other", OLD)
        assert sorted(os.listdir(tmp_path)) == sorted({*before, "other"})
        write_folder(path, NEW)
        assert sorted(os.listdir(tmp_path)) == ["model", "other"]
        verify_folder(path)
    assert number > 8 and seen == {"old", "new"}
    assert (path / "a").read_text() == "new"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_a_killed_replacement_of_files_is_whole_or_says_so(tmp_path: Path, others: bool, after: bool) -> None:
    folder, number = tmp_path / "data", 0

    def write(content: str, *names: str) -> None:
        with replacing_files(folder, NAMES) as stage:
            for name in names:
                (stage / name).write_text(content)
                with open(stage / name) as file:
                    os.fsync(file.fileno())

    while True:
        number += 1
        write("{}", *NAMES)
        if others:
            (folder / "mine.txt").write_text("mine")
        if not killed_at(number, after, lambda: write("[]", "train.bin", "meta.json"), {}):
            break
        there = {file.name: file.read_text() for file in folder.iterdir() if not file.name.startswith(".")}
        assert there.pop("mine.txt", None) == ("mine" if others else None)
        if "meta.json" in there:
            whole = {"train.bin", "meta.json"} if there["meta.json"] == "[]" else set(NAMES)
            assert set(there) == whole and len(set(there.values())) == 1
        else:
            assert others
            with pytest.raises(DataError, match="meta.json: no such file. An interrupted save left .meta.json.tmp-"):
                read_meta(folder)
            with pytest.raises(DataError, match="interrupted save left .meta.json.tmp-"):
                TokenFile(folder)
        write("{}", *NAMES)
        assert sorted(os.listdir(tmp_path)) == ["data"]
        assert sorted(os.listdir(folder)) == sorted({*NAMES, *(["mine.txt"] if others else [])})
    assert number > 5


@pytest.mark.parametrize("first", range(1, 7))
def test_a_replacement_that_cannot_be_undone_keeps_the_earlier_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """From a number of renames on, all fail: those that replace files, and those that put them back."""
    folder, real, renames = tmp_path / "data", os.rename, 0
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")

    def write(content: str) -> None:
        with replacing_files(folder, NAMES) as stage:
            for name in NAMES:
                (stage / name).write_text(content)

    def failing(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real(source, target)

    write("{}")
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        write("[]")
    monkeypatch.undo()
    kept = {file.name.removesuffix(".old") for file in folder.rglob("*") if file.is_file() and file.read_text() == "{}"}
    assert kept == set(NAMES)
    if first > 1:
        with pytest.raises(DataError, match="interrupted save left .meta.json.tmp-"):
            TokenFile(folder)
    write("{}")
    assert sorted(os.listdir(folder)) == sorted({*NAMES, "mine.txt"})


def test_at_every_instant_a_folder_is_in_place(tmp_path: Path) -> None:
    path, stop, missing = tmp_path / "model", threading.Event(), []
    write_folder(path, OLD)
    if not atomic._exchange(path, path):
        pytest.skip("the system cannot exchange folders")

    def look() -> None:
        while not stop.is_set():
            try:
                os.stat(path)
            except FileNotFoundError:
                missing.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for i in range(150):
            write_folder(path, NEW if i % 2 else OLD)
    finally:
        stop.set()
        thread.join()
    assert not missing


def test_a_file_that_was_being_written_is_cleaned_by_its_next_writer(tmp_path: Path) -> None:
    left = tmp_path / f".results.json.tmp-{dead_process()}-00000000"
    left.write_text("half")
    write_file(tmp_path / "other.json", "x")
    assert left.exists()
    write_file(tmp_path / "results.json", "x")
    assert not left.exists()


def test_an_exchange_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model", OLD)

    def fail(one: Path, two: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error", str(one))

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_exchange", fail)
        with pytest.raises(OSError, match="Input/output error"):
            write_folder(tmp_path / "model", NEW)
    verify_folder(tmp_path / "model")
    assert (tmp_path / "model" / "a").read_text() == "old" and os.listdir(tmp_path) == ["model"]


def test_the_mode_of_a_replaced_folder_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", OLD)
    (tmp_path / "model").chmod(0o750)
    write_folder(tmp_path / "model", NEW)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


# ---------------------------------------------------------------------- locks
HOLD = """
import sys, time
from pathlib import Path
from mom.files.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of ``tmp_path / "run"``."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(TextDocuments(["some words again and again " * 50] * 5), folder, vocab_size=300, progress=False)
    return folder


def train(data: Path, run_dir: Path, **changes: Any) -> Any:
    settings = {"steps": 2, "batch_size": 2, "sequence_length": 16, "progress": False, "run_dir": run_dir, **changes}
    return mom.train(mom.MoM(CONFIG), data, **settings)


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path, data: Path, holder: subprocess.Popen[str]) -> None:
    for resume in (False, True):
        with pytest.raises(TrainingError, match=rf"run_dir: .*run is in use by process {holder.pid} on \S+; wait"):
            train(data, tmp_path / "run", resume=resume)
    assert os.listdir(tmp_path / "run") == [LOCK_FILE]


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path: Path, data: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    assert train(data, tmp_path / "run").step == 2
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_run_within_a_run_is_refused(tmp_path: Path, data: Path) -> None:
    class Again:
        def record(self, record: dict[str, Any]) -> None:
            train(data, tmp_path / "run", resume=True)

    with pytest.raises(TrainingError, match=f"in use by process {os.getpid()} on "):
        train(data, tmp_path / "run", callbacks=[Again()])
    assert train(data, tmp_path / "run", resume=True).step == 2


def test_a_lock_is_released_even_if_its_owner_has_a_child(tmp_path: Path) -> None:
    """The lock belongs to the process that took it: the end of a fork does not release it."""
    with lock_folder(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(TrainingError), lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mom.files import locks

    def refuse(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="run_dir: the file system of .* has no locks"), lock_folder(tmp_path):
        pass


def refusing(name: str, number: int, monkeypatch: pytest.MonkeyPatch, wanted: str = "") -> None:
    """Let a function of `os` fail for paths that contain `wanted`, or for open files that do."""
    real = getattr(os, name)

    def call(what: Any, *arguments: Any, **more: Any) -> Any:
        where = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
        if wanted in where:
            raise OSError(number, os.strerror(number))
        return real(what, *arguments, **more)

    monkeypatch.setattr(os, name, call)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_only_the_lock_itself_says_that_a_folder_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stat", "ftruncate", "pwrite"):
        with monkeypatch.context() as patch:
            refusing(name, errno.EACCES, patch, LOCK_FILE)
            with pytest.raises(PermissionError, match=LOCK_FILE), lock_folder(tmp_path):
                pass
    with lock_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_the_end_of_a_lock_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was done under the lock is done."""
    with monkeypatch.context() as patch, lock_folder(tmp_path):
        refusing("close", errno.EINTR, patch, LOCK_FILE)
        refusing("unlink", errno.EIO, patch, LOCK_FILE)
    assert os.listdir(tmp_path) == [LOCK_FILE]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_what_cannot_be_deleted_is_left_for_the_next_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`shutil.rmtree` raises some errors even if it is told to ignore them."""
    write_folder(tmp_path / "step-1", OLD)
    with monkeypatch.context() as patch:
        refusing("fstat", errno.EIO, patch, ".drop-")
        refusing("rmdir", errno.EIO, patch, ".drop-")
        write_folder(tmp_path / "step-2", NEW, keep_last=1)
    verify_folder(tmp_path / "step-2")
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2 and left[0].startswith(".step-1.drop-")
    assert [path.name for path in clean_leftovers(tmp_path)] == [left[0]]


def test_a_run_that_is_at_work_keeps_its_temporary_folders(tmp_path: Path) -> None:
    """Another host's process looks dead here; the lock tells."""
    write_folder(tmp_path / "step-1", OLD)
    other = tmp_path / f".step-2.tmp-{dead_process()}-00000000"
    other.mkdir()
    with lock_folder(tmp_path):
        assert latest_valid(tmp_path)[0] == tmp_path / "step-1"
        assert other.exists()
    latest_valid(tmp_path)
    assert not other.exists()


# ---------------------------------------------------------------------- what cannot be read
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("what", ["manifest.json", "model.safetensors"])
def test_a_read_error_is_not_damage(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    train(data, tmp_path / "run", save_every=1)
    newest, real, calls = tmp_path / "run" / "step-00000002", os.stat, []

    def failing(path: Any, *arguments: Any, **more: Any) -> Any:
        if str(path) == str(newest / what):
            calls.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        with pytest.raises(OSError, match="step-00000002") as caught:
            train(data, tmp_path / "run", resume=True, steps=4)
        assert caught.value.errno == number and calls
    assert train(data, tmp_path / "run", resume=True, steps=4).step == 4


def test_a_run_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(data, tmp_path / "run")

    def failing(path: Any = ".") -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    for resume in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", failing)
            patch.setattr(os, "scandir", failing)
            patch.setattr(Path, "iterdir", failing)  # Python 3.10 keeps functions of its own
            with pytest.raises(OSError, match="Input/output error"):
                train(data, tmp_path / "run", resume=resume)


def test_rotation_passes_over_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write_folder(tmp_path / f"step-{step}", OLD)
    real = folders.read_manifest

    def failing(path: Any) -> Any:
        if Path(path).name == "step-3":
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(folders, "read_manifest", failing)
    assert folders.rotate(tmp_path, 1) == [tmp_path / "step-1"]
    assert sorted(os.listdir(tmp_path)) == ["step-2", "step-3"], "what cannot be read is neither counted nor deleted"


def test_flushing_a_folder_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def failing(number: int) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        return fsync

    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    for write in (lambda: write_folder(tmp_path / "x", OLD), lambda: write_file(tmp_path / "y", "x")):
        with pytest.raises(OSError, match="Input/output error") as caught:
            write()
        assert str(tmp_path) in caught.value.filename
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))  # as some network file systems answer
    write_folder(tmp_path / "x", OLD)
    verify_folder(tmp_path / "x")


# ---------------------------------------------------------------------- names
def test_the_root_is_refused() -> None:
    with pytest.raises(CheckpointError, match="/: is a mount point, which cannot be replaced; choose a folder below"):
        write_folder("/", OLD)


def test_a_mount_point_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(CheckpointError, match="disk: is a mount point"):
        folders.check_replaceable(tmp_path / "disk")
    with replacing_files(tmp_path / "disk", NAMES) as stage:  # its files can be
        (stage / "meta.json").write_text("{}")
    assert os.listdir(tmp_path / "disk") == ["meta.json"]


@pytest.mark.parametrize("name", ["x" * 240, "ü" * 120, "x" * 255])
def test_long_names_are_names(tmp_path: Path, name: str) -> None:
    for files in (OLD, NEW):
        write_folder(tmp_path / name, files)
        verify_folder(tmp_path / name)
    left = tmp_path / f".{atomic._stem(name)}.old-{dead_process()}-00000000"
    os.rename(tmp_path / name, left)
    assert clean_leftovers(tmp_path) == [] and left.exists(), "only its next writer knows its name"
    write_folder(tmp_path / name, OLD)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_impossible_names_are_named(tmp_path: Path, data: Path, name: str) -> None:
    path, texts = tmp_path / name, TextDocuments(["a"])
    calls = (
        lambda: train(data, path), lambda: prepare(texts, path, progress=False), lambda: write_folder(path, OLD),
        lambda: mom.MoM.from_pretrained(path), lambda: mom.MoM(CONFIG).save_pretrained(path),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(MomError, match="cannot be the name of a file|is not a folder"):
            call()
    assert os.listdir(tmp_path) == []
