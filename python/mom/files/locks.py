"""Who works in a folder: a lock that ends with its process.

The lock is one of the system (``flock``) on a file ``.lock`` in the folder. When a process ends, in whatever way, the
system releases its locks, so the next run takes over. The file names the process for messages.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import TrainingError
from .atomic import naming_file

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK_FILE", "FolderInUse", "is_locked", "lock_folder"]

LOCK_FILE = ".lock"


class FolderInUse(TrainingError):
    """Another run holds the lock of a folder.

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


@contextlib.contextmanager
def lock_folder(folder: Path, argument: str = "run_dir", name: str = LOCK_FILE) -> Iterator[None]:
    """Hold the lock of a folder, which exists, until the block ends.

    Parameters
    ----------
    folder : Path
    argument : str
        Begins messages.
    name : str
        Name of the lock's file. Locks with different names are held independently of each other.

    Raises
    ------
    FolderInUse
        If another run holds it, in this process or in another one.
    """
    file = folder / name
    descriptor = None if fcntl is None else _take(file, folder, argument)
    owner = os.getpid()
    try:
        yield
    finally:
        if descriptor is not None:
            if os.getpid() == owner:  # in a fork, the lock belongs to the parent
                with contextlib.suppress(OSError):
                    os.unlink(file)
            with contextlib.suppress(OSError):  # the lock is released in any case
                os.close(descriptor)


def is_locked(folder: Path, name: str = LOCK_FILE) -> bool:
    """Whether somebody holds the lock of a folder at this moment. The folder need not exist."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def _take(file: Path, folder: Path, argument: str) -> int | None:
    """Open the lock file and lock it. None if the file system has no locks."""
    while True:
        with naming_file(file), contextlib.ExitStack() as undo:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            undo.callback(os.close, descriptor)
            if not _lock(descriptor, folder, argument):
                return None
            if _is_still(file, descriptor):  # otherwise its owner has just removed it
                content = json.dumps({"process": os.getpid(), "host": socket.gethostname()})
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, content.encode(), 0)
                undo.pop_all()
                return descriptor


def _lock(descriptor: int, folder: Path, argument: str) -> bool:
    """Lock an open file. False, after a warning, if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            words = f"{argument}: {folder} is in use by {_owner(descriptor)}; wait for its end, or use another folder"
            raise FolderInUse(words, folder) from None
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            words = f"{argument}: the file system of {folder} has no locks. Make sure that only one run uses it"
            warnings.warn(words, stacklevel=5)
            return False
        raise
    return True


def _is_still(file: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    return False


def _owner(descriptor: int) -> str:
    """The process that holds the lock, in words."""
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        found = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(found['process'])} on {found['host']!s}"
    return "another process"
