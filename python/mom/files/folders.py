"""Folders that are either complete or not there at all.

`write_folder` writes every file of a checkpoint into a temporary folder beside the final one and flushes each to the
disk. It adds ``manifest.json`` with sizes and SHA-256 sums, and puts the folder in place, see `mom.files.atomic`. A
crash or a full disk at any moment leaves the earlier folder as it was. `verify_folder` checks a folder against its
manifest. `latest_valid` finds the newest valid checkpoint of a training run and reports the ones it passed over.
`rotate` removes old ones.

Hashing costs about as much as writing. Files are written and read once, in pieces, and never held in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .._arguments import flag
from .._json import to_json
from .._reading import is_name, is_size, kind_of, open_file, read_json, shown
from ..distributed import is_first
from ..errors import CheckpointError, TrainingError
from .atomic import clean_before, clean_leftovers, naming_file, remove_folder, replacing, sibling, sync_folder
from .locks import lock_folder

__all__ = [
    "MODEL_FILES",
    "MANIFEST",
    "check_replaceable",
    "clean_leftovers",
    "latest_valid",
    "model_inside",
    "naming_file",
    "read_manifest",
    "rotate",
    "sync_folder",
    "verify_folder",
    "write_file",
    "write_folder",
    "write_json",
]

PathLike = str | os.PathLike[str]
Content = bytes | str | Callable[[BinaryIO], object]

MANIFEST = "manifest.json"
#: Files of a saved model.
MODEL_FILES = ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json")  # fmt: skip
_FORMAT = 1
_CHUNK = 1 << 20


class _HashingWriter(io.RawIOBase):
    """A write-only stream that counts and hashes what goes to the file behind it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._hash.update(view)
        self._size += view.nbytes
        return view.nbytes

    def summary(self) -> dict[str, Any]:
        return {"size": self._size, "sha256": self._hash.hexdigest()}


def _write_and_sync(path: Path, content: Content) -> dict[str, Any]:
    """Write one file through to the disk, and return its size and hash."""
    with naming_file(path), open(path, "wb") as file:
        writer = _HashingWriter(file)
        if callable(content):
            content(writer)  # type: ignore[arg-type]
        else:
            writer.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
        return writer.summary()


def write_file(path: PathLike, content: Content) -> dict[str, Any]:
    """Write or replace one file. A crash leaves the old file or the new one, never a mixture.

    On several ranks, rank 0 alone writes (`mom.distributed.is_first`).

    Parameters
    ----------
    path : path
        The file; its folder must exist.
    content : bytes, str or callable
        What to write. A callable gets a write-only binary stream.

    Returns
    -------
    dict
        ``size`` in bytes and ``sha256``; empty on other ranks.
    """
    if not is_first():
        return {}
    path = Path(path)
    clean_before(path)
    with sibling(path, "tmp") as temporary:
        try:
            summary = _write_and_sync(temporary, content)
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError) and not path.parent.exists():  # it names the temporary file
                raise FileNotFoundError(error.errno, "The folder does not exist", str(path.parent)) from None
            raise
    sync_folder(path.parent)
    return summary


def write_json(path: PathLike, value: Any, *, words: bool = False) -> None:
    """Write or replace a JSON file; see `write_file` and, for `words`, `to_json`."""
    write_file(path, to_json(value, words=flag(words, "words")))


def write_folder(
    path: PathLike, files: Mapping[str, Content], *, keep_last: int | None = None, prefix: str = "step-"
) -> dict[str, Any]:
    """Write a folder atomically: an earlier one of the same name is replaced only after everything has been written.

    On several ranks, rank 0 alone writes (`mom.distributed.is_first`).

    Parameters
    ----------
    path : path
        The folder; missing parents are made.
    files : mapping of str to bytes, str or callable
        File name (no sub-folders) to content. A callable gets a write-only binary stream, so large files need not be
        held in memory.
    keep_last : int, optional
        Afterwards keep only this many folders ``<prefix><number>`` beside this one, see `rotate`.
    prefix : str
        See `keep_last`.

    Returns
    -------
    dict
        The manifest; empty on other ranks.

    Raises
    ------
    CheckpointError
        If a file name is not allowed, or if `path` is not a folder or is the current folder. Also if the folder holds a
        file that is neither about to be written nor listed in the folder's manifest: replacing the folder would lose
        that file.
    OSError
        If writing fails, with the file's name; the earlier folder is then intact.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "step-10"
    >>> manifest = write_folder(folder, {"note.txt": "hello"})
    >>> manifest["files"]["note.txt"]["size"], verify_folder(folder) == manifest
    (5, True)
    """
    for name in files:
        if not is_name(name) or name == MANIFEST:
            raise CheckpointError(f"files: {name!r} cannot be the name of a file in a checkpoint")
    if keep_last is not None and keep_last < 1:
        raise CheckpointError(f"keep_last: {keep_last} is less than 1")
    check_replaceable(path, files)
    if not is_first():
        return {}
    path = Path(os.path.realpath(path))  # a link stays; the folder behind it is written
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        manifest = {
            "format": _FORMAT,
            "files": {name: _write_and_sync(temporary / name, content) for name, content in files.items()},
        }
        _write_and_sync(temporary / MANIFEST, to_json(manifest))
    if keep_last is not None:
        rotate(path.parent, keep_last, prefix=prefix, protect=path)
    return manifest


def check_replaceable(path: PathLike, names: Iterable[str] = ()) -> None:
    """Raise unless a folder can be written at `path` without losing anything but an earlier version of it.

    Parameters
    ----------
    path : path
        Where `write_folder` will write; it need not exist.
    names : iterable of str
        Files about to be written.

    Raises
    ------
    CheckpointError
        If the folder holds other files, is the current folder, the root or another mount point, or is a file; or if its
        parent is a file or cannot be written to.
    """
    kind = kind_of(path)
    path = Path(os.path.realpath(path))
    if kind not in (None, "folder"):
        raise CheckpointError(f"{path}: exists and is not a folder")
    if path == Path(path.anchor) or os.path.ismount(path):
        raise CheckpointError(f"{path}: is a mount point, which cannot be replaced; choose a folder below it")
    parent = next(folder for folder in path.parents if kind_of(folder) is not None)
    if not parent.is_dir():
        raise CheckpointError(f"{path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path}: {parent} cannot be written to")
    if kind is None:
        return
    own = {MANIFEST, *names}
    with contextlib.suppress(CheckpointError):
        own |= set(read_manifest(path)["files"])
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in own)
    if foreign:
        raise CheckpointError(f"{path}: holds {foreign[0]!r}, which saving there would delete; choose another folder")
    if path == Path.cwd().resolve():
        raise CheckpointError(f"{path}: is the current folder, which saving there would replace; choose another one")


def read_manifest(path: PathLike) -> dict[str, Any]:
    """The manifest of a folder, checked for its form.

    Raises
    ------
    CheckpointError
        If it is missing, not JSON, or not a manifest.
    OSError
        If it cannot be read.
    """
    file = Path(path) / MANIFEST
    if kind_of(file) is None:
        raise CheckpointError(f"{file}: no such file")
    manifest = read_json(file, CheckpointError)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{file}: not a manifest of format {_FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{file}: 'files' is not an object")
    for name, entry in files.items():
        if not is_name(name):
            raise CheckpointError(f"{file}: {shown(name)} is not the name of a file in the same folder")
        if not isinstance(entry, dict) or not is_size(entry.get("size")) or not _is_sha256(entry.get("sha256")):
            raise CheckpointError(f"{file}: entry of {shown(name)} lacks a size or a SHA-256 sum")
    return manifest


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def verify_folder(path: PathLike, *, hashes: bool = True) -> dict[str, Any]:
    """Check a folder against its manifest.

    Parameters
    ----------
    path : path
        The folder. Files that the manifest does not list are let be.
    hashes : bool
        Also read every file and compare SHA-256; False compares sizes only.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    CheckpointError
        Naming the first file that is missing, of another size or of other content.
    OSError
        If a file cannot be read, which does not mean that it is damaged.
    """
    hashes = flag(hashes, "hashes")
    path = Path(path)
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if kind_of(file) != "file":
            raise CheckpointError(f"{file}: missing")
        if (size := file.stat().st_size) != entry["size"]:
            raise CheckpointError(f"{file}: {size} bytes, expected {entry['size']}")
        if hashes and _sha256(file) != entry["sha256"]:
            raise CheckpointError(f"{file}: content differs from its SHA-256 in {MANIFEST}")
    return manifest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with naming_file(path), open_file(path, CheckpointError) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _numbered(run_dir: Path, prefix: str) -> list[Path]:
    """Folders ``<prefix><number>`` of a run, newest (largest number) first."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)", re.ASCII)
    found = [
        (int(m[1]), entry)
        for entry in run_dir.iterdir()
        if (m := pattern.fullmatch(entry.name)) and kind_of(entry) == "folder"
    ]
    return [entry for _, entry in sorted(found, reverse=True)]


def model_inside(folder: PathLike) -> str:
    """The end of a message that a folder holds no model: the newest model of the run that it holds, or nothing."""
    for found in (Path(folder) / "model", *_numbered(Path(folder), "step-")):
        if (found / "config.json").is_file():
            return f"; it is a run's folder, and its model is {found}"
    return ""


def latest_valid(run_dir: PathLike, prefix: str = "step-") -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest valid checkpoint of a run.

    Leftovers of interrupted writers are cleaned up first, unless a run is at work in the folder.

    Parameters
    ----------
    run_dir : path
        Folder that holds folders ``<prefix><number>``; need not exist.
    prefix : str
        See `run_dir`.

    Returns
    -------
    path : Path or None
        The valid folder with the largest number, if any.
    passed_over : list of (Path, str)
        Newer folders that are not valid, and why.

    Raises
    ------
    OSError
        If a folder or a file cannot be read. So a run never begins again, or from an older checkpoint, for that reason.
    """
    run_dir = Path(run_dir)
    if kind_of(run_dir) != "folder":
        return None, []
    with contextlib.suppress(OSError, TrainingError), lock_folder(run_dir):
        clean_leftovers(run_dir)
    passed_over: list[tuple[Path, str]] = []
    for folder in _numbered(run_dir, prefix):
        try:
            verify_folder(folder)
        except CheckpointError as error:
            passed_over.append((folder, str(error)))
        else:
            return folder, passed_over
    return None, passed_over


def rotate(run_dir: PathLike, keep_last: int, *, prefix: str = "step-", protect: PathLike | None = None) -> list[Path]:
    """Delete all but the newest checkpoints of a run.

    Only complete folders, by the sizes in their manifest, count as kept. So a damaged newer folder never pushes out a
    good older one.

    Parameters
    ----------
    run_dir, prefix
        As in `latest_valid`.
    keep_last : int
        How many to keep, at least 1.
    protect : path, optional
        A folder that is kept in any case.

    Returns
    -------
    list of Path
        What was deleted, newest first.
    """
    if keep_last < 1:
        raise CheckpointError(f"keep_last: {keep_last} is less than 1")
    run_dir = Path(run_dir)
    protected = None if protect is None else Path(protect).name
    kept, dropped = 0, []
    for folder in _numbered(run_dir, prefix):
        if kept < keep_last or folder.name == protected:
            with contextlib.suppress(CheckpointError, OSError):
                verify_folder(folder, hashes=False)
                kept += 1
            continue
        # The folder is renamed first: while it is deleted, it must not look like a damaged checkpoint.
        with sibling(folder, "drop") as doomed:
            os.rename(folder, doomed)
            remove_folder(doomed)
        dropped.append(folder)
    return dropped
