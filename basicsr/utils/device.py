"""The one place that decides what the network runs on, and how precisely."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from basicsr.utils.errors import DeviceError
from basicsr.utils.overrides import Overrides

PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')

_HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def resolve_device(name: str | torch.device = 'auto') -> torch.device:
    """'auto' is the first there is of CUDA, MPS and CPU. 'cpu' does not touch CUDA at all.

    Raises DeviceError if the name means nothing or the device is not there.
    """
    asked = str(name).strip().lower()
    match = re.fullmatch(r'(auto|cpu|mps|cuda)(?::(\d+))?', asked)
    if match is None or (match[2] and match[1] != 'cuda'):
        raise DeviceError(f'device: found {str(name)!r}; allowed: auto, cpu, mps, cuda, cuda:<number>')
    kind, index = match[1], match[2]
    if kind == 'auto':
        kind = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
        return torch.device(kind)
    if kind == 'mps' and not torch.backends.mps.is_available():
        raise DeviceError('device: found mps, but this machine or this PyTorch has none; allowed: auto, cpu')
    if kind == 'cuda':
        if not torch.cuda.is_available():
            reason = (
                'PyTorch sees no usable GPU'
                if torch.backends.cuda.is_built()
                else 'this PyTorch was built without CUDA'
            )
            raise DeviceError(f'device: found {asked}, but {reason}; allowed: auto, cpu')
        count = torch.cuda.device_count()
        if index is not None and int(index) >= count:
            there = ', '.join(f'cuda:{i}' for i in range(count))
            raise DeviceError(f'device: found {asked}, which does not exist; there are: {there}')
    return torch.device(kind) if index is None else torch.device(kind, int(index))


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The type to compute in; None for that of the weights, which is single precision.

    'auto' is bf16 where it is faster than single precision: on a CUDA device of Ampere and later, and on a
    processor with instructions for it. Raises DeviceError on another name, and on fp16 on a CPU.
    """
    asked = str(name).strip().lower()
    if asked not in PRECISIONS:
        raise DeviceError(f'precision: found {name!r}; allowed: {", ".join(PRECISIONS)}')
    if asked == 'auto':
        return torch.bfloat16 if _computes_in_bf16(device) else None
    if asked == 'fp16' and device.type == 'cpu':
        raise DeviceError(
            'precision: found fp16 on a CPU, where it is neither fast nor safe; allowed: auto, fp32, bf16'
        )
    return _HALF.get(asked)


def _no_tf32() -> Overrides:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    if not hasattr(cuda.matmul, 'fp32_precision'):  # before PyTorch 2.9
        return Overrides((cudnn, 'allow_tf32', False), (cuda.matmul, 'allow_tf32', False))
    # Reading the older settings raises once a program has used these. The general ones come first: what a program
    # has not set by itself follows them, and still does so afterwards.
    owners = torch.backends, cudnn, cudnn.conv, cuda.matmul
    return Overrides(*((owner, 'fp32_precision', 'ieee') for owner in owners))


_NO_TF32 = _no_tf32()
_REPEATABLE = Overrides(
    (torch.backends.cudnn, 'benchmark', False), (torch.backends.cudnn, 'deterministic', True)
)


def without_tf32(device: torch.device) -> AbstractContextManager[None]:
    """Single precision as it is: PyTorch lets cuDNN round the factors of convolutions to 10 bits (TF32) on its own,
    and does so again when no thread is in here any more."""
    return _NO_TF32.within() if device.type == 'cuda' else nullcontext()


def repeatable(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN does not choose its kernels by timing them, which takes seconds for each new size and may end differently
    the next time, and takes none whose result varies from call to call."""
    return _REPEATABLE.within() if device.type == 'cuda' else nullcontext()


def precision_name(dtype: torch.dtype | None) -> str:
    """What `resolve_precision` was given: 'fp32', 'bf16' or 'fp16'."""
    return next((name for name, half in _HALF.items() if half is dtype), 'fp32')


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == 'cuda':
        # Not torch.cuda.is_bf16_supported(): that is also true where bf16 is emulated, slowly.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == 'cpu' and torch.backends.mkldnn.is_available():
        # PyTorch tells only in private functions, and not in all its versions.
        return bool(_processor_flags() & {'avx512_bf16', 'amx_bf16'})
    return False


def _processor_flags() -> set[str]:
    """Of the first processor; none where the system does not list them."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(':')[2] for line in lines if line.startswith('flags')), '').split())
