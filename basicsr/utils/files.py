"""Where the repository is, and files and folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from basicsr.utils.errors import InUseError

if sys.platform != 'win32':
    import fcntl

ROOT = Path(__file__).resolve().parents[2]


def expanded(path: str | os.PathLike[str]) -> Path:
    """`~` is the home folder, which no shell puts into `--option=~/x`; `~name` stays as it is where there is no such
    user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError


def resolve(path: str | os.PathLike[str]) -> Path:
    """Relative paths count from the repository root; `~` is the home folder."""
    return ROOT / expanded(path)


def absolute(path: str | os.PathLike[str]) -> Path:
    """As on a command line: relative paths count from the working directory; `~` is the home folder."""
    return expanded(path).absolute()


def atomic_write(path: str | os.PathLike[str], data: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes bytes, or what `data(file)` writes into the file it is given. Whoever opens `path`, after a kill
    or a power cut too, finds the old file or the new one, never a part. The folder must exist.

    Raises OSError, and whatever `data` raises; the old file then stands untouched.
    """
    path = Path(path)
    # Same folder, as a rename between file systems is not atomic. Not named after `path`, whose name may
    # already be as long as a name can be.
    temporary = _temporary(path.parent)
    try:
        with temporary.open('xb') as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def as_json(data: Any, indent: int | None = 1) -> str:
    """As the standard has it, for any reader: it knows no infinity and no NaN, so these become null."""

    def standard(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: standard(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [standard(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(standard(data), indent=indent, allow_nan=False)


@contextlib.contextmanager
def scratch_folder(folder: Path, path: Path | None = None) -> Iterator[Path]:
    """A new folder in `folder`, removed at the end. What is whole in it is renamed to its place before, as is the
    new folder itself where all of it is wanted. Raises OSError.

    Args:
        path: its name, which none but the holder of a lock may use; what a killed process has left there is removed.
            None: any.
    """
    scratch = path or _temporary(folder)
    try:
        if path is not None and scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir()
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _temporary(folder: Path) -> Path:
    return folder / f'.{secrets.token_hex(8)}.tmp'


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left of the above in a folder, where no other may be writing now."""
    for path in folder.glob('.*.tmp'):
        if re.fullmatch(r'\.[0-9a-f]{16}\.tmp', path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def check_writable(folder: Path) -> None:
    """Raises OSError if nothing can be written into a folder."""
    try:
        with scratch_folder(folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Makes a folder, and those above it; what was made and is empty at the end is removed. Raises OSError."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # something is in it, or another process was first
                folder.rmdir()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Makes a file whose holder alone may do something, and removes it at the end. In a folder where no file can be
    made nobody is kept out: nothing can be done there. Raises InUseError, or OSError."""
    file = _held_file(path)
    try:
        yield
    finally:
        if file is not None:
            if sys.platform == 'win32':  # an open file cannot be removed there
                file.close()
            path.unlink(missing_ok=True)
            file.close()


def _held_file(path: Path) -> IO[bytes] | None:
    while True:
        try:
            file = path.open('a+b')
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            if path.exists():
                raise InUseError(f'another user is at work on it, or was and has left {path}') from None
            return None
        if not lock(file):
            file.close()
            raise InUseError('another process is at work on it')
        # The one before may have removed it after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of some network file systems


def lock(file: IO[Any]) -> bool:
    """Whether this process has an open file for itself, until it closes it or ends. Nobody is kept out on Windows and
    on file systems without such locks."""
    if sys.platform == 'win32':
        return True
    try:
        # A record lock, not flock: a loader's workers would inherit that, and outlive a killed run.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def check_room(folder: Path, size: int) -> None:
    """Raises OSError, as a full disk does, if fewer than `size` bytes are free for a folder that is there."""
    free = shutil.disk_usage(folder).free
    if free < size:
        needed = f'{size / 1e6:,.0f} MB are needed, and {free / 1e6:,.0f} MB free'
        raise OSError(errno.ENOSPC, f'{os.strerror(errno.ENOSPC)} ({needed})')


def sync_folder(folder: Path) -> None:
    """Makes a name that was just given or taken in a folder last through a power cut."""
    if os.name != 'posix':  # elsewhere a folder cannot be opened, and the rename needs no help
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder. The file itself is in place by now.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
