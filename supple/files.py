"""Files that are either the old one or the new one, never a half-written one."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

from supple.errors import InputError

LOCK = ".lock"
"""Held by the process that writes a run's folder."""
MAY_NOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of folders that this process may not write into."""


_of_this_process: weakref.WeakSet[Any] = weakref.WeakSet()


def cache_folder() -> Path:
    """Where what is compiled outlives a reboot, unlike in the temporary folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "supple"
    except RuntimeError:  # an account without a home, as containers have
        return Path(tempfile.gettempdir()) / "supple"


def keep_from_forks(thing: Any) -> None:
    """Close a file or a connection in processes forked from this one.

    A worker may outlive the run that was killed: it would hold the run's folder, and the other
    processes of a run would take this one for alive.
    """
    _of_this_process.add(thing)


def _close_in_fork() -> None:
    for thing in list(_of_this_process):
        thing.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_fork)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the folder's list of names is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync folders; there is nothing more to do then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Give ``path`` this content in one step: readers see all of the old or all of the new.

    One process writes a given path at a time: the temporary name beside it is fixed, so that what
    a killed process left is overwritten by the next.

    Raises:
        OSError: the disk is full or the folder cannot be written, ``filename`` is ``path``, which
            is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a write on a full disk names no file, others the temporary
            error.filename, error.filename2 = str(path), None
        raise
    sync_folder(path.parent)


def claim(folder: Path) -> IO[str]:
    """Lock a run's folder for this process, until the returned file is closed or the process ends.

    Raises:
        InputError: another process is writing the run, or this one may not.
        OSError: the disk is full, say.
    """
    try:
        file = (folder / LOCK).open("a", encoding="utf-8")
    except OSError as error:
        if error.errno not in MAY_NOT_WRITE:
            raise
        raise InputError(
            f"cannot write {folder}: {error.strerror}; use an account that may, or copy the folder"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if not isinstance(error, BlockingIOError):
            raise
        raise InputError(
            f"{folder} is in use by another supple process: wait for it, or choose another folder"
        ) from error
    keep_from_forks(file)
    return file
