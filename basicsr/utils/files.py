"""Where the repository is, and files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]


def resolve(path: str | os.PathLike[str]) -> Path:
    """Relative paths count from the repository root; `~` is the home folder."""
    return ROOT / Path(path).expanduser()


def atomic_write(path: str | os.PathLike[str], data: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes bytes, or what `data(file)` writes into the file it is given. Whoever opens `path`, after a kill
    or a power cut too, finds the old file or the new one, never a part. The folder must exist.

    Raises OSError, and whatever `data` raises; the old file then stands untouched.
    """
    path = Path(path)
    # Same folder, as a rename between file systems is not atomic. Not named after `path`, whose name may
    # already be as long as a name can be.
    temporary = path.parent / f'.{secrets.token_hex(8)}.tmp'
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
