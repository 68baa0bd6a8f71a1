"""The one place that decides what the network runs on, and how precisely."""

from __future__ import annotations

import re

import torch

PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')

_HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class DeviceError(ValueError):
    """A device or a precision that this machine does not have."""


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
    """The type that autocast computes in; None for single precision throughout (no autocast).

    'auto' is bf16 where a CUDA device computes in it (Ampere and later), and single precision elsewhere.
    Raises DeviceError on another name, and on fp16 on a CPU.
    """
    asked = str(name).strip().lower()
    if asked not in PRECISIONS:
        raise DeviceError(f'precision: found {name!r}; allowed: {", ".join(PRECISIONS)}')
    if asked == 'auto':
        # Not torch.cuda.is_bf16_supported(): that is also true where bf16 is emulated, slowly.
        fast = device.type == 'cuda' and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if fast else None
    if asked == 'fp16' and device.type == 'cpu':
        raise DeviceError(
            'precision: found fp16 on a CPU, where it is neither fast nor safe; allowed: auto, fp32, bf16'
        )
    return _HALF.get(asked)
