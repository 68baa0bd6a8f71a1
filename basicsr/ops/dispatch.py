"""Which implementation of an operation runs: the device, the type, autograd, autocast, tracing and compiling decide."""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from basicsr.utils.logger import get_logger

if TYPE_CHECKING:
    from basicsr.ops import kernels
else:
    kernels = None  # `_runs_on` imports it: most machines have no Triton

HALF = (torch.float16, torch.bfloat16)

# Evaluated at import: torch.compile cannot trace this call.
_AUTOCAST = frozenset(kind for kind in ('cpu', 'cuda', 'mps', 'xpu') if torch.amp.is_autocast_available(kind))


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off. Does nothing for a device type without autocast, for which PyTorch raises."""
    if device.type in _AUTOCAST:
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def records_gradients() -> bool:
    """False during ONNX tracing, even if grad mode is on."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing()


def has_own_gradient() -> bool:
    """Whether to use the autograd functions of this package. A compiler derives its own gradients, and without
    gradients the plain operations suffice."""
    return records_gradients() and not torch.compiler.is_compiling()


def uses_triton(x: Tensor) -> bool:
    """Whether the Triton kernels compute with x."""
    if not x.is_cuda or x.dtype == torch.float64 or torch.jit.is_tracing():
        return False
    return _known_to_run_on(x.device)


@torch.compiler.assume_constant_result
def _known_to_run_on(device: torch.device) -> bool:
    return _runs_on(device)  # torch.compile evaluates this once and does not trace it


@functools.cache
def _runs_on(device: torch.device) -> bool:
    """Whether the Triton kernels run on a CUDA device. Tries the most demanding one: Triton needs a C compiler, which
    some systems lack."""
    global kernels
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        kernels = importlib.import_module('basicsr.ops.kernels')
        with torch.cuda.device(device):
            kernels.gated_depthwise(
                torch.ones(1, 1, 1, 32, device=device), torch.ones(32, 1, 3, 3, device=device), None
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind: the operating system's, the C compiler's, Triton's
        get_logger().warning(
            'Triton kernels do not run on %s (%s): using slower PyTorch operations. Is a C compiler installed?',
            device,
            (str(error).splitlines() or [type(error).__name__])[0],
        )
        return False
    return True
