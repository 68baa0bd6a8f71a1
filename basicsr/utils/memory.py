"""How much memory there is to work in."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from math import prod
from pathlib import Path

import psutil
import torch
from torch import Tensor

_CGROUPS = Path('/sys/fs/cgroup')
_MEMBERSHIP = Path('/proc/self/cgroup')

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_keeps_all = False  # since `keep_all_memory`


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device without harming anybody; None where nobody can tell.

    For a CPU that is what the system says is available, or less if a control group (of a container, of a batch
    system) allows less: Linux kills whoever takes more.
    """
    if device.type == 'cuda':
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device.index)[0] + unused
    if device.type != 'cpu':
        return None
    if _keeps_all:
        _c_library().malloc_trim(0)  # what this process has freed is free
    return min([psutil.virtual_memory().available, *_cgroups_leave()])


def _cgroups_leave() -> list[int]:
    """What this process's control groups leave, versions 1 and 2, from the innermost outwards."""
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
    """0 if it is not told."""
    with suppress(OSError, ValueError):
        return int(dict(line.split() for line in file.read_text().splitlines()).get(name, 0))
    return 0


def empty(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    """Memory for activations that live at full size. On Linux in huge pages: the first touch of hundreds of
    thousands of small ones would take as long as a tenth of the network. Raises MemoryError."""
    if device.type != 'cpu' or not hasattr(mmap, 'MADV_HUGEPAGE'):
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(str(error)) from error
    with suppress(OSError):  # of a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def keep_freed_memory() -> None:
    """glibc hands freed memory of some size back to the system, and the next temporary faults it in again, page
    by page. How much it keeps follows the largest block freed so far, up to 32 MiB: so free one."""
    torch.empty(31 << 20, dtype=torch.uint8)


def keep_all_memory() -> None:
    """From now on glibc hands freed memory back only when `free_memory` is asked. A training step frees and takes the
    same gigabytes again and again, in pieces beyond what `keep_freed_memory` reaches; without this, half of its time
    goes by in faulting their pages in. Nothing happens where the C library has no such setting."""
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
    """Every allocator says it differently."""
    text = str(error).lower()
    said = ('out of memory', "can't allocate memory", 'not enough memory', 'alloc_failed')
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(words in text for words in said)
