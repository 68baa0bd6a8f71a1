"""Devices and precisions."""

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
    """The device of a name; 'auto' is the first available of CUDA, MPS and CPU. 'cpu' does not initialise CUDA.

    Raises DeviceError on an unknown name or a missing device.
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
    """The type to compute in, or None for the type of the weights (single precision).

    'auto' is bf16 where it is faster than single precision: on a CUDA device of Ampere or later, and on a CPU with
    instructions for it. Raises DeviceError on an unknown name, and on fp16 on a CPU.
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
    # Reading the older settings raises once a program has used the new ones. The general settings come first: those
    # that a program has not set follow them, and still do afterwards.
    owners = torch.backends, cudnn, cudnn.conv, cuda.matmul  # type: ignore[attr-defined]
    return Overrides(*((owner, 'fp32_precision', 'ieee') for owner in owners))


_NO_TF32 = _no_tf32()
_REPEATABLE = Overrides(
    (torch.backends.cudnn, 'benchmark', False), (torch.backends.cudnn, 'deterministic', True)
)


def without_tf32(device: torch.device) -> AbstractContextManager[None]:
    """Context of exact single precision. By default PyTorch lets cuDNN round the factors of convolutions to 10 bits
    (TF32); it does so again when the last thread has left."""
    return _NO_TF32.within() if device.type == 'cuda' else nullcontext()


def repeatable(device: torch.device) -> AbstractContextManager[None]:
    """Context in which cuDNN takes only deterministic kernels, and does not choose them by timing, which takes seconds
    for each new size and may choose differently the next time."""
    return _REPEATABLE.within() if device.type == 'cuda' else nullcontext()


def precision_name(dtype: torch.dtype | None) -> str:
    """Inverse of `resolve_precision`: 'fp32', 'bf16' or 'fp16'."""
    return next((name for name, half in _HALF.items() if half is dtype), 'fp32')


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == 'cuda':
        # Not torch.cuda.is_bf16_supported(), which is also true where bf16 is emulated, slowly.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == 'cpu' and torch.backends.mkldnn.is_available():
        # PyTorch knows only in private functions, and not in all versions.
        return bool(processor_flags() & {'avx512_bf16', 'amx_bf16'})
    return False


def processor_flags() -> set[str]:
    """CPU flags of the first processor; empty if the system does not list them."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(':')[2] for line in lines if line.startswith('flags')), '').split())
