"""Paths, atomic writes and lock files."""

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

from basicsr.utils.errors import InUseError, OptionError
from basicsr.utils.text import show

if sys.platform != 'win32':
    import fcntl

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = _PACKAGE / 'shipped'  # setup.py makes it, in wheels alone
IS_WHEEL = _IN_WHEEL.is_dir()
# The base of relative paths in option files, and of experiments/ and results/: the repository or, for a package that
# was installed without it, the working directory.
ROOT = Path() if IS_WHEEL else _PACKAGE.parent
# The repository or, in a wheel, the copy of those of its files that the package needs.
SHIPPED = _IN_WHEEL if IS_WHEEL else ROOT

# -------------------------------------------------------------- paths


def expanded(path: str | os.PathLike[str]) -> Path:
    """Expands `~`, which shells leave alone in `--option=~/x`. `~name` stays if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError


def resolve(path: str | os.PathLike[str]) -> Path:
    """A path in an option file: `~`, `$NAME` and `${NAME}` are expanded, and `ROOT` is the base of relative paths. A
    path that exists as it is written keeps its `$`. Raises OptionError if a variable is not set."""
    written = ROOT / expanded(path)
    if '$' not in str(path) or os.path.lexists(written):
        return written
    if unset := unset_variable(path):
        found = f'found {show(str(path))}, whose environment variable {unset} is not set'
        raise OptionError([f'{found}; allowed: variables that are set'])
    return ROOT / expanded(os.path.expandvars(path))


def unset_variable(path: str | os.PathLike[str]) -> str | None:
    """The first environment variable of a path that is not set, if any."""
    names = re.findall(r'\$(?:(\w+)|\{([^}]*)\})', str(path), re.ASCII)
    return next((name for name in map(''.join, names) if name not in os.environ), None)


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path on the command line: `~` is expanded, and the working directory is the base of relative paths."""
    return expanded(path).absolute()


# -------------------------------------------------------------- writing


def atomic_write(path: str | os.PathLike[str], data: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes bytes, or lets `data(file)` write them. Even after a kill or a power cut, `path` has either the old or the
    complete new content. The folder must exist.

    Raises OSError that names the file, and whatever `data` raises; the old file then stays.
    """
    path = Path(path)
    # In the same folder, as a rename between file systems is not atomic. Not named after `path`, whose name may have
    # the maximum length.
    temporary = _temporary(path.parent)
    with naming(path):
        try:
            with temporary.open('xb') as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except RuntimeError as error:  # torch.save raises it for an OSError
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes every OSError name this path: errors of writing to an open file name none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def as_json(data: Any, indent: int | None = 1) -> str:
    """Standard JSON: infinity and NaN, which it lacks, become null."""

    def standard(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: standard(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [standard(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(standard(data), indent=indent, allow_nan=False)


@contextlib.contextmanager
def scratch_folder(folder: Path, path: Path | None = None) -> Iterator[Path]:
    """Makes a temporary folder in `folder` and removes it at the end. Rename finished files, or the folder itself, to
    their final names before. Raises OSError.

    Args:
        path: a fixed name, for the holder of a lock; leftovers of a killed process there are removed. None: random.
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
    """Removes the temporary files and folders of killed processes. No other process may be writing to `folder`."""
    for path in folder.glob('.*.tmp'):
        if re.fullmatch(r'\.[0-9a-f]{16}\.tmp', path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Makes a folder and its parents; removes at the end those it made that are empty. Raises OSError."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, or removed by another process
                folder.rmdir()


def check_writable(folder: Path) -> None:
    """Raises OSError if the folder is not writable."""
    with naming(folder), scratch_folder(folder):
        pass


def check_room(folder: Path, size: int) -> None:
    """Raises OSError, as a full disk does, if less than `size` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        needed = f'{size / 1e6:,.0f} MB are needed, and {free / 1e6:,.0f} MB free'
        raise OSError(errno.ENOSPC, f'{os.strerror(errno.ENOSPC)} ({needed})', str(folder))


def sync_folder(folder: Path) -> None:
    """Makes new and removed names in a folder survive a power cut."""
    if os.name != 'posix':  # elsewhere a folder cannot be opened, and a rename needs no sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


# -------------------------------------------------------------- locks


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Makes and locks a file, and removes it at the end. In a read-only folder no lock is taken. Raises InUseError if
    another process holds it, OSError."""
    file = _locked(path)
    try:
        yield
    finally:
        if file is not None:
            if sys.platform == 'win32':  # where an open file cannot be removed
                file.close()
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: Path) -> IO[bytes] | None:
    while True:
        try:
            file = path.open('a+b')
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            if path.exists():
                raise InUseError(
                    f'another user holds the lock {path}; delete it if none of their processes is running'
                ) from None
            return None
        if not lock(file):
            file.close()
            raise InUseError('another process holds the lock')
        # The previous holder may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def lock(file: IO[Any]) -> bool:
    """Locks an open file until it is closed or the process ends. Returns False if another process holds the lock; True
    without a lock on Windows and on file systems that have none."""
    if sys.platform == 'win32':
        return True
    try:
        # A record lock, not flock: a loader's workers would inherit that, and may outlive a killed run.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # some network file systems
            raise
    return True
