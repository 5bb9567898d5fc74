"""Files and folders that are replaced in one step: at every instant the old or the new one is in place.

A writer fills a temporary file or folder beside the final one, flushes it to the disk, and exchanges the two. Linux can
exchange two folders in one step. Where the system cannot, the old folder is renamed away first.

While a writer is at work, what lies beside ``X`` is called ``.X.<kind>-<process id>-<random>``. A writer that was
killed leaves it behind. The next writer of ``X`` deals with it (`clean_leftovers`), and readers mention it
(`mention_of`):

``tmp``   a new version being written, or an earlier one that has just been replaced; a leftover is deleted
``old``   the version being replaced, where the system cannot exchange folders; a leftover is renamed back to ``X`` if
          ``X`` is missing, as the process then died between two renames; otherwise it is deleted
``drop``  an outdated folder being deleted; a leftover is deleted
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .._reading import kind_of, naming_file

__all__ = [
    "clean_before", "clean_leftovers", "mention_of", "naming_file", "remove_folder", "replacing",
    "replacing_files", "sibling", "sync_folder",
]  # fmt: skip

PathLike = str | os.PathLike[str]

_LEFTOVER = re.compile(r"\.(?P<stem>.+)\.(?P<kind>tmp|old|drop)-(?P<pid>\d+)-[0-9a-f]{8}", re.DOTALL)
#: Temporary names that this process works on. After a restart in a container another process can have had its id.
_active: set[Path] = set()
#: Longest name, in bytes, that leaves room for what is added to it. File systems allow 255.
_LONGEST = 200


# ---------------------------------------------------------------------- names
def _stem(name: str) -> str:
    """What the temporary names beside a file contain: its name, or for a long name its beginning and a hash."""
    raw = os.fsencode(name)
    return name if len(raw) <= _LONGEST else f"{name[:40]}~{hashlib.sha256(raw).hexdigest()[:16]}"


@contextlib.contextmanager
def sibling(path: Path, kind: str) -> Iterator[Path]:
    """An unused name beside `path`, marked as in use by this process until the block ends."""
    name = f".{_stem(path.name)}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"
    found = Path(os.path.abspath(path.parent)) / name
    _active.add(found)
    try:
        yield found
    finally:
        _active.discard(found)


# ---------------------------------------------------------------------- leftovers
def _leftovers(folder: Path, name: str | None) -> Iterator[tuple[Path, re.Match[str]]]:
    """What dead writers left in a folder: of all names, or of one."""
    for entry in sorted(folder.iterdir()):
        match = _LEFTOVER.fullmatch(entry.name)
        if match is None or (name is not None and match["stem"] != _stem(name)):
            continue
        if Path(os.path.abspath(entry)) not in _active and not _is_alive(int(match["pid"])):
            yield entry, match


def clean_leftovers(folder: PathLike, name: str | None = None) -> list[Path]:
    """Remove or restore what interrupted writers left in `folder`; see the module's description.

    Parameters
    ----------
    folder : path
    name : str, optional
        Only what writers of this name left.

    Returns
    -------
    list of Path
        The leftovers that were removed or restored.
    """
    done = []
    for entry, match in list(_leftovers(Path(folder), name)):
        target = entry.parent / (name or match["stem"])
        if match["kind"] == "old" and kind_of(target) is None:
            if name is None and "~" in match["stem"]:
                continue  # only a writer that knows the long name can restore it
            os.rename(entry, target)
            sync_folder(entry.parent)
        elif entry.is_dir():
            remove_folder(entry)
        else:
            entry.unlink(missing_ok=True)
        done.append(entry)
    return done


def remove_folder(path: Path) -> None:
    """Delete a folder that nobody needs. What cannot be deleted is left over for the next writer."""
    with contextlib.suppress(OSError):  # with ignore_errors, too, some errors are raised
        shutil.rmtree(path, ignore_errors=True)


def clean_before(path: Path) -> None:
    """What a writer of `path` does first: deal with what killed writers of `path` left, if the folder may be listed."""
    with contextlib.suppress(OSError):
        clean_leftovers(path.parent, path.name)


def mention_of(path: PathLike) -> str:
    """A clause for a message about something that is missing or damaged: what interrupted writers left beside it.

    It is empty if they left nothing.
    """
    path = Path(os.path.abspath(path))
    with contextlib.suppress(OSError, ValueError):
        for entry, match in _leftovers(path.parent, path.name):
            if match["kind"] == "old":
                return f". An interrupted save left the earlier version in {entry.name}: rename that to {path.name}"
            if match["kind"] == "tmp":
                return f". An interrupted save left {entry.name} beside it; saving again removes that"
    return ""


def _is_alive(pid: int) -> bool:
    """Whether another process has this id. True on systems where asking would do harm."""
    if pid == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# ---------------------------------------------------------------------- putting in place
def sync_folder(path: Path) -> None:
    """Make renames in a folder durable, if the system can. Windows cannot open folders; some file systems refuse."""
    if os.name != "posix":
        return
    with naming_file(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The C library's ``renameat2``, which Linux has."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None


def _exchange(one: Path, two: Path) -> bool:
    """Exchange two files or folders in one step. False if the system or the file system cannot."""
    call, here, flag = _renameat2(), -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call is None:
        return False
    if call(here, os.fsencode(one), here, os.fsencode(two), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(two))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`. After the block it takes the place of `path`.

    The block writes the files through to the disk. If the block raises, `path` stays as it was.
    """
    clean_before(path)
    with sibling(path, "tmp") as temporary:
        try:
            temporary.mkdir()
            if kind_of(path) is not None:
                shutil.copymode(path, temporary)
            yield temporary
            sync_folder(temporary)
            _put_in_place(temporary, path)
        except BaseException:
            remove_folder(temporary)
            raise


def _put_in_place(new: Path, path: Path) -> None:
    if kind_of(path) is not None and _exchange(new, path):
        try:
            sync_folder(path.parent)
        except BaseException:
            _exchange(new, path)
            raise
        remove_folder(new)  # the earlier version
        return
    with sibling(path, "old") as old:
        try:
            if kind_of(path) is not None:
                os.rename(path, old)
            os.rename(new, path)
            sync_folder(path.parent)
        except BaseException:
            if not new.exists():
                os.rename(path, new)
            if old.exists():
                os.rename(old, path)
            raise
        remove_folder(old)


@contextlib.contextmanager
def replacing_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder. After the block, files in it take the places of the files `names` of `folder`.

    Files that are not in `names` stay. A file of `names` that the block does not write is removed. If `folder` holds
    nothing else, it is replaced as a whole, in one step. Otherwise the files are renamed one by one: the last of
    `names` is taken away first and comes back last. So if the process is killed in between, that file is missing.
    """
    missing = [parent for parent in (folder, *folder.parents) if kind_of(parent) is None]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if _may_be_replaced(folder, names):
            with replacing(Path(os.path.realpath(folder))) as stage:
                yield stage
        else:
            clean_before(folder)
            with _replacing_one_by_one(folder, names) as stage:
                yield stage
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _may_be_replaced(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder is missing, or holds nothing else and can be renamed."""
    if kind_of(folder) is None:
        return True
    real = Path(os.path.realpath(folder))
    # A folder that this or another process works in must stay the same folder. A mount point cannot be renamed.
    if real == Path.cwd().resolve() or real in Path.cwd().resolve().parents or os.path.ismount(real):
        return False
    return all(entry.name in names for entry in folder.iterdir()) and os.access(real.parent, os.W_OK | os.X_OK)


@contextlib.contextmanager
def _replacing_one_by_one(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    last = names[-1]
    with sibling(folder / last, "tmp") as stage:
        try:
            stage.mkdir()
            yield stage
            sync_folder(stage)
            _move_files(stage, folder, [last, *names[:-1]], [*names[:-1], last])
        except _NotUndoneError:
            raise  # `stage` has earlier files, and tells readers that `folder` is not complete
        except BaseException:
            remove_folder(stage)
            raise
        remove_folder(stage)
    clean_before(folder / last)  # only now: until the files are there, a leftover says that they were not


class _NotUndoneError(OSError):
    """Files could be neither replaced nor put back."""


def _move_files(stage: Path, folder: Path, leaving: Sequence[str], coming: Sequence[str]) -> None:
    """Move files from `folder` to `stage`, and others back. What cannot be finished is undone.

    Undoing ends at the first file that cannot be moved. So the last of `coming` stays away, and without it the other
    files do not count.
    """
    undo: list[tuple[Path, Path]] = []
    moves = [(folder / name, stage / f"{name}.old") for name in leaving]
    moves += [(stage / name, folder / name) for name in coming]
    try:
        for source, target in moves:
            if kind_of(source) is not None:
                os.rename(source, target)
                undo.append((target, source))
        sync_folder(folder)
    except BaseException as error:
        try:
            for now, before in reversed(undo):
                os.rename(now, before)
        except OSError as second:
            words = f"{os.strerror(second.errno or 0)}, while undoing a replacement; earlier files are in {stage.name}"
            raise _NotUndoneError(second.errno, words, str(folder)) from error
        raise
