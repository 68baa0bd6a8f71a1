"""C kernels for a CPU, `cpu_kernels.c`, compiled for this processor where the system has a C compiler.

PyTorch computes a depthwise convolution, GELU, a product and a layer norm one after the other, each with a pass over
memory that takes longer than its arithmetic. Compiling takes a second; the result is kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_long, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from basicsr.utils.device import processor_flags
from basicsr.utils.logger import get_logger

SOURCE = Path(__file__).with_suffix('.c')
# No -ffast-math: broken weights must give results that are not finite.
FLAGS = ('-O3', '-fno-math-errno', '-w', '-shared', '-fPIC')
LEAST_CHANNELS = 32  # BLOCK in the source, at most

_SUFFIX = {torch.float32: 'float', torch.bfloat16: 'uint16_t'}


def run_on(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether these kernels compute with features of this type and number of channels. Compiles them if need be."""
    return device.type == 'cpu' and dtype in _SUFFIX and channels >= LEAST_CHANNELS and _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None without a C compiler (the environment's `CC` names another one), or if compiling or loading fails."""
    choices = [shlex.split(os.environ['CC'])] if os.getenv('CC') else [['cc'], ['gcc'], ['clang']]
    compiler = next((choice for choice in choices if choice and shutil.which(choice[0])), None)
    if compiler is None or os.name == 'nt':
        return None
    native = '-march=native' if platform.machine().lower() in ('x86_64', 'amd64') else '-mcpu=native'
    command = [*compiler, *FLAGS, native, str(SOURCE), '-lm']
    try:
        library = ctypes.CDLL(str(_compiled(command)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home directory
        said = getattr(error, 'stderr', None) or str(error)
        get_logger().warning(
            'The C kernels do not compile or run (%s): using PyTorch, which takes up to twice as long',
            (said.strip().splitlines() or [type(error).__name__])[0],
        )
        return None
    return library


def _compiled(command: list[str]) -> Path:
    """Compiles once for each version of the source, command and processor. Raises OSError, RuntimeError,
    SubprocessError."""
    text = '\n'.join([SOURCE.read_text(), *command, platform.machine(), *sorted(processor_flags())])
    folder = Path(os.getenv('XDG_CACHE_HOME') or Path.home() / '.cache') / 'restormer'
    path = folder / f'cpu_kernels_{hashlib.sha256(text.encode()).hexdigest()[:16]}.so'
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary, path.name)
            subprocess.run([*command, '-o', str(made)], check=True, capture_output=True, text=True, timeout=120)  # noqa: S603
            made.replace(path)  # another process may have made it meanwhile
    return path


def _call(name: str, *arguments: int | float | Tensor | None) -> None:
    """Integers become long, a tensor the address of its data, None a null pointer."""

    def converted(value: int | float | Tensor | None) -> c_void_p | c_float | c_long:
        if value is None or isinstance(value, Tensor):
            return c_void_p(value.data_ptr() if value is not None else None)
        return c_float(value) if isinstance(value, float) else c_long(value)

    getattr(_library(), name)(*map(converted, arguments))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y: Tensor) -> None:
    """(…, C) into y, contiguous; parameters in float32. Without a bias, the mean is not subtracted."""
    C = x.shape[-1]
    _call(f'layer_norm_{_SUFFIX[x.dtype]}', x.numel() // C, C, x, weight, bias, eps, y)


def depthwise(x_nWK: Tensor, taps_9K: Tensor, bias: Tensor | None, y_nWK: Tensor) -> None:
    """Rows 1 to n - 2 of a 3×3 depthwise convolution, contiguous, into y, of the type of x or in float32; parameters
    in float32."""
    n, W, K = x_nWK.shape
    name = 'depthwise' if y_nWK.dtype == x_nWK.dtype else 'depthwise_full'
    _call(f'{name}_{_SUFFIX[x_nWK.dtype]}', n - 2, W, K, x_nWK, taps_9K, bias, y_nWK)


def gated_depthwise(x_nWK: Tensor, taps_9K: Tensor, bias: Tensor | None, y_nWK: Tensor) -> None:
    """The same, then GELU of the first half of the channels times the other half: y has K / 2."""
    n, W, K = x_nWK.shape
    _call(f'gated_depthwise_{_SUFFIX[x_nWK.dtype]}', n - 2, W, K // 2, x_nWK, taps_9K, bias, y_nWK)


def add_squares(square_K: Tensor, x_nwK: Tensor) -> None:
    """Add the sums over pixels of x², in float32. Rows of x need not follow each other in memory:
    those of a TLC cell one pixel wide are part of a strip."""
    n, w, K = x_nwK.shape
    _call('add_squares', n, w, x_nwK.stride(0), K, x_nwK, square_K)
