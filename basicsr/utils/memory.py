"""Free memory, and how the process keeps it."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from math import prod
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

_CGROUPS = Path('/sys/fs/cgroup')
_MEMBERSHIP = Path('/proc/self/cgroup')

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_keeps_all = False  # set by `keep_all_memory`


def free_memory(device: torch.device) -> int | None:
    """Free bytes on a device, or None if unknown.

    For a CPU: the system's available memory, or less if a control group (of a container or a batch system) allows less,
    as Linux kills a process that takes more.
    """
    if device.type == 'cuda':
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device.index)[0] + unused
    if device.type != 'cpu':
        return None
    if _keeps_all:
        _c_library().malloc_trim(0)  # return freed memory to the system
    return min([psutil.virtual_memory().available, *_cgroups_leave()])


def _cgroups_leave() -> list[int]:
    """Bytes left by each control group of this process, versions 1 and 2, from the innermost outwards."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return []
    left = []
    for line in lines:
        _, controllers, group = line.split(':', 2)
        if controllers == '':
            root, limit, used, cache = _CGROUPS, 'memory.max', 'memory.current', 'inactive_file'
        elif 'memory' in controllers.split(','):
            root = _CGROUPS / 'memory'
            limit, used, cache = 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'
        else:
            continue
        inner = root / group.lstrip('/')
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(root):
                break
            try:
                most, now = (int((folder / name).read_text()) for name in (limit, used))
            except (OSError, ValueError):  # no limit ("max"), or the group is not visible from inside it
                continue
            left.append(max(0, most - now + _statistic(folder / 'memory.stat', cache)))
    return left


def _statistic(file: Path, name: str) -> int:
    """One line of memory.stat; 0 if it is missing."""
    with suppress(OSError, ValueError):
        return int(dict(line.split() for line in file.read_text().splitlines()).get(name, 0))
    return 0


def empty(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    """Uninitialised memory for activations at full size. On Linux in huge pages: the first touch of hundreds of
    thousands of small pages takes as long as a tenth of the network. Raises MemoryError."""
    if device.type != 'cpu' or not hasattr(mmap, 'MADV_HUGEPAGE'):
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(str(error)) from error
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Workspace:
    """Memory for large temporaries, used again and again; one of each name at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.blocks: dict[str, Tensor] = {}

    def get(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Uninitialised; valid until the next call with this name."""
        size = prod(shape) * dtype.itemsize
        if name not in self.blocks or self.blocks[name].numel() < size:
            self.blocks.pop(name, None)  # free the old memory first
            self.blocks[name] = empty(torch.uint8, self.device, size)
        return self.blocks[name][:size].view(dtype).view(shape)


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 32 MiB. It returns larger ones to the system, and the next temporary faults
    them in again, page by page. Its threshold follows the largest block freed so far: so free one."""
    torch.empty(31 << 20, dtype=torch.uint8)


def keep_all_memory() -> None:
    """Make glibc return freed memory only in `free_memory`. A training step frees and takes the same gigabytes again
    and again, in blocks beyond the reach of `keep_freed_memory`; page faults would take half of its time. Does nothing
    if the C library has no such setting."""
    global _keeps_all
    with suppress(AttributeError, OSError, TypeError):
        library = _c_library()
        mallopt, _ = library.mallopt, library.malloc_trim
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        _keeps_all = True


def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an allocator ran out of memory; each words its error differently."""
    text = str(error).lower()
    phrases = ('out of memory', "can't allocate memory", 'not enough memory', 'alloc_failed')
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
        phrase in text for phrase in phrases
    )
