"""Restoration of images with one network."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from numbers import Real
from typing import Any, Literal, Protocol, SupportsIndex

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.archs.from_weights import build_network
from basicsr.archs.restormer_arch import Restormer
from basicsr.images.writer import check_pixels
from basicsr.inference.strip_engine import StripEngine, runs_in_strips
from basicsr.inference.tiles import checked_overlap, restore_tiles
from basicsr.inference.tlc import DEFAULT_WINDOW
from basicsr.ops import no_autocast
from basicsr.tasks import default_weights
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.device import (
    precision_name,
    repeatable,
    resolve_device,
    resolve_precision,
    without_tf32,
)
from basicsr.utils.errors import RestoreError
from basicsr.utils.logger import get_logger
from basicsr.utils.memory import free_memory, is_out_of_memory

_SMALLEST_STRIP_BYTES = 1_000_000
_TENSOR_TYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.uint16): torch.uint16}


def restore_tensor(network: Callable[[Tensor], Tensor], x_BCHW: Tensor, multiple: int | None = None) -> Tensor:
    """The network's output for images of any size: padded on the right and at the bottom, and cropped afterwards.

    (B, C, H, W) in and out, input values in [0, 1], output not clamped. Sides are padded to a multiple of `multiple`;
    None for the network's attribute of that name, or 8 without one.
    """
    multiple = multiple or _multiple_of(network)
    H, W = x_BCHW.shape[-2:]
    x = _pad_right(x_BCHW, -W % multiple)
    x = _pad_right(x.mT, -H % multiple).mT
    return network(x)[..., :H, :W]


def _multiple_of(network: Callable[[Tensor], Tensor]) -> int:
    multiple: int = getattr(network, 'multiple', 8)
    return multiple


def _pad_right(x_BCHW: Tensor, pad: int) -> Tensor:
    if pad == 0:
        return x_BCHW
    # A side of n has n - 1 pixels to reflect.
    return F.pad(x_BCHW, (0, pad, 0, 0), mode='reflect' if x_BCHW.shape[-1] > pad else 'replicate')


class Restorer:
    """Restores images with one network on one device.

    >>> restorer = Restorer.from_checkpoint('net_g_300000.pth', device='cuda')
    >>> sharp = restorer(blurred)  # uint8 or uint16, (H, W) or (H, W, 3) RGB, alpha allowed; same shape and type

    Integers may be of any type, such as NumPy's.

    Args:
        net: takes and returns (B, C, H, W). It is moved to the device and set to eval mode; a Restormer's weights are
            taken as they are now.
        device: 'auto', 'cpu', 'cuda', 'cuda:1', …
        precision: 'auto', 'fp32', 'bf16', 'fp16'; see `resolve_precision`.
        memory_limit: bytes of working memory for a Restormer; None for the memory that is free when an image comes.
            Smaller strips keep the limit and give the same result, up to rounding; an image that does not fit with any
            strips is refused before work starts.
        tlc: attention over local windows (TLC, arXiv 2112.04491): True for windows of 384 pixels, or their side, a
            multiple of 8; False or None: off. For a Restormer only.
        tile: side of tiles that are restored separately and blended; None for the image as a whole.
        tile_overlap: pixels that neighbouring tiles share, 0 ≤ tile_overlap < tile; None for 32, or half a tile.
        multiple: sides are padded to a multiple of this; None for what the network says it needs.
        fixed_strips: choose strips independently of free memory, so that an image always gives the same bits. (If they
            do not fit on a GPU, strips shrink all the same, with a warning.)

    For a 3-channel network a grey image is repeated, and the output channels are averaged (weights of 1/3: no channel
    is closer to a grey scene than another). A colour image goes through a 1-channel network channel by channel. A
    6-channel network restores one image of two, the left and the right view of a dual-pixel sensor. Alpha is copied.
    Results are rounded half to even.

    Several threads may call one Restorer; each call takes memory of its own.

    `progress`, if set, is called with the part that is done, up to 1, while a Restormer restores an image. It starts
    anew for each tile, and for each channel that is restored by itself. An exception that it raises ends the call.

    Raises DeviceError; ValueError on invalid arguments; RestoreError if the network does not fit in memory.
    """

    progress: Callable[[float], None] | None = None

    def __init__(
        self,
        net: nn.Module,
        device: str | torch.device = 'auto',
        precision: str = 'auto',
        *,
        memory_limit: float | None = None,
        tlc: bool | SupportsIndex | None = None,
        tile: SupportsIndex | None = None,
        tile_overlap: SupportsIndex | None = None,
        multiple: SupportsIndex | None = None,
        fixed_strips: bool = False,
    ) -> None:
        self.device = resolve_device(device)
        self.dtype = resolve_precision(precision, self.device)
        self.precision = precision_name(self.dtype)
        if memory_limit is not None and (
            isinstance(memory_limit, bool)
            or not isinstance(memory_limit, Real)
            or not 1 <= memory_limit < float('inf')
        ):
            raise ValueError(
                f'memory_limit: found {memory_limit!r}; allowed: a number of bytes above 0, or None'
            )
        self.memory_limit = None if memory_limit is None else int(memory_limit)
        self.fixed_strips = fixed_strips
        self.multiple = _multiple_of(net) if multiple is None else _integer('multiple', multiple)
        self.tile = tile if tile is None else _integer('tile', tile)
        overlap = tile_overlap if tile_overlap is None else _integer('tile_overlap', tile_overlap)
        self.window = check_arguments(net, self.multiple, tlc, self.tile, overlap)
        self.tile_overlap = 0 if self.tile is None else checked_overlap(self.tile, overlap, self.multiple)
        self.channels = _image_channels(net)
        self.weights_dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
        self.engine: StripEngine | None = None
        with _out_of_memory_raises(f'the network does not fit into the memory of {self.device}'):
            net = net.to(device=self.device).to(memory_format=torch.channels_last).eval()
            if runs_in_strips(net):
                self.engine = StripEngine(net, self.dtype, self.window)
            elif isinstance(net, Restormer):
                get_logger().warning(
                    '%s changes the forward pass or the parts of Restormer: it restores images without strips, '
                    'which takes more memory',
                    type(net).__name__,
                )
        self.network: Callable[[Tensor], Tensor] = self.engine or net
        self.strip_bytes = self.engine.strip_bytes if self.engine is not None else 0
        self.warned = False  # that strips became smaller

    @property
    def settings(self) -> str:
        """A description for messages: 'cpu, bf16, TLC'."""
        return f'{self.device}, {self.precision}' + (', TLC' if self.window else '')

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device = 'auto',
        precision: str = 'auto',
        *,
        tlc: bool | int | None = None,
        param_key: str | None = None,
        **options: Any,
    ) -> Restorer:
        """Restorer of the network in a weights file; None for the default weights for motion deblurring.

        `param_key` says which weights of the file: 'params', 'params_ema', …; None: the averaged ones if it has any.
        If `tlc` is None, the file decides: it says whether its weights were validated with TLC, as those that come with
        the repository were. `options` are the other arguments of the class. Raises CheckpointError, too.
        """
        weights = load_weights(default_weights('motion_deblurring') if path is None else path, param_key)
        return cls(build_network(weights), device, precision, tlc=weights.with_tlc(tlc), **options)

    def __call__(self, image: np.ndarray, right: np.ndarray | None = None) -> np.ndarray:
        """Restore an array (H, W), or (H, W, C) with 1 to 4 channels, of uint8 or uint16 in any byte order; returns the
        same shape and type.

        `right`: for a dual-pixel network, the right view, of the shape and type of the left view `image`. Raises
        ValueError on other shapes and types, and on a network that is not for images of 1 or 3 channels, or for two
        views; RestoreError if memory is too small or the result is not finite.
        """
        self.check_channels(1 if right is None else 2)
        given = np.asarray(image)
        views = [_native(np.asarray(view)) for view in (given, right) if view is not None]
        for view in views[1:]:
            if view.shape != views[0].shape or view.dtype != views[0].dtype:
                raise ValueError(
                    f'right: found {view.dtype} of shape {view.shape}; allowed: as the left view, {views[0].dtype} of '
                    f'shape {views[0].shape}'
                )
        H, W = given.shape[:2]
        with torch.inference_mode(), _out_of_memory_raises(_too_large(H, W, self.device)):
            self._check_memory(H, W)
            restored = self._restore_array(views)
        return restored.reshape(given.shape).astype(given.dtype, copy=False)

    def _restore_array(self, views: list[np.ndarray]) -> np.ndarray:
        image = views[0]
        H, W = image.shape[:2]
        full_scale = np.iinfo(image.dtype).max
        colours = 3 if image.ndim == 3 and image.shape[2] > 2 else 1
        uploaded = [self._upload(view.reshape(H, W, -1)[..., :colours]).div_(full_scale) for view in views]
        y_BCHW = self._restore_channels([x_HWC.permute(2, 0, 1).unsqueeze(0) for x_HWC in uploaded])
        del uploaded
        if not y_BCHW.isfinite().all():
            raise RestoreError(
                f'the result for {W}×{H} pixels is not finite: the weights are broken, or the precision is '
                'too low for them (fp32 and bf16 have the range)'
            )
        y_HWC = y_BCHW[0].permute(1, 2, 0).clamp_(0, 1).mul_(full_scale).round_()
        if self.device.type == 'cuda':  # copy back a quarter or a half of the bytes
            y_HWC = y_HWC.to(_TENSOR_TYPES[image.dtype])
        restored = y_HWC.cpu().numpy().astype(image.dtype, copy=False)
        if image.ndim == 2:
            return restored[..., 0]
        return np.concatenate([restored, image[..., colours:]], axis=2)

    def _upload(self, pixels_HWC: np.ndarray) -> Tensor:
        """In single precision, on the device."""
        if self.device.type != 'cuda':  # other devices may lack unsigned 16-bit integers
            return torch.from_numpy(pixels_HWC.astype(np.float32)).to(self.device)
        pinned = torch.empty(pixels_HWC.shape, dtype=_TENSOR_TYPES[pixels_HWC.dtype], pin_memory=True)
        pinned.numpy()[...] = pixels_HWC
        return pinned.to(self.device, non_blocking=True).float()

    def check_channels(self, views: Literal[1, 2] = 1) -> None:
        """Raises ValueError if the network is not for images of 1 or 3 channels, or for two views of 3 channels."""
        inputs = (1, 3) if views == 1 else (6,)
        if self.channels not in inputs:
            allowed = '1 or 3, as images have' if views == 1 else '6, as two views have'
            raise ValueError(f'network: found one that takes {self.channels} channels; allowed: {allowed}')
        expected = self.channels // views
        given = expected if self.engine is None else self.engine.out_channels
        if given != expected:
            raise ValueError(
                f'network: found one that makes {given} channels of {self.channels}; allowed: {expected}'
            )

    def _restore_channels(self, views_BCHW: list[Tensor]) -> Tensor:
        x_BCHW = views_BCHW[0]
        if len(views_BCHW) == 1 and x_BCHW.shape[1] > self.channels:
            # One by one instead of as a batch: a third of the memory.
            return torch.cat([self.restore(x_B1HW) for x_B1HW in x_BCHW.split(1, dim=1)], dim=1)
        is_grey = x_BCHW.shape[1] * len(views_BCHW) < self.channels
        if is_grey:
            views_BCHW = [view.expand(-1, 3, -1, -1) for view in views_BCHW]
        y_BCHW = self.restore(views_BCHW[0] if len(views_BCHW) == 1 else torch.cat(views_BCHW, dim=1))
        return y_BCHW.mean(1, keepdim=True) if is_grey else y_BCHW

    @torch.no_grad()  # not inference_mode, whose tensors have restrictions
    def restore(self, x_BCHW: Tensor) -> Tensor:
        """Restore a tensor (B, C, H, W) in [0, 1] of any size and on any device.

        The result is on this Restorer's device, in single precision (double for a network in double), not clamped.
        Raises ValueError on other tensors, RestoreError if memory is too small.
        """
        if x_BCHW.ndim != 4 or 0 in x_BCHW.shape or not x_BCHW.is_floating_point():
            raise ValueError(
                f'image: found a tensor of {tuple(x_BCHW.shape)} {x_BCHW.dtype}; allowed: (B, C, H, W), float'
            )
        H, W = x_BCHW.shape[-2:]
        exactly = nullcontext() if self.dtype else without_tf32(self.device)
        with _out_of_memory_raises(_too_large(H, W, self.device)), repeatable(self.device), exactly:
            x_BCHW = x_BCHW.to(self.device)
            if self.tile is None:
                return self._restore(x_BCHW)
            self._check_memory(H, W, len(x_BCHW))
            return restore_tiles(self._restore, x_BCHW, self.tile, self.tile_overlap)

    def _restore(self, x_BCHW: Tensor) -> Tensor:
        if self.engine is None:
            kind = self.device.type
            with no_autocast(self.device) if self.dtype is None else torch.autocast(kind, self.dtype):
                x_BCHW = x_BCHW.to(self.weights_dtype, memory_format=torch.channels_last)
                y_BCHW = restore_tensor(self.network, x_BCHW, self.multiple)
            return y_BCHW.to(torch.promote_types(y_BCHW.dtype, torch.float32))
        before = self.strip_bytes
        engine = self._fitting(self.engine, *x_BCHW.shape[-2:])
        while True:
            try:
                return restore_tensor(engine, x_BCHW, self.multiple)
            except torch.cuda.OutOfMemoryError:
                if engine.strip_bytes <= _SMALLEST_STRIP_BYTES:
                    self.strip_bytes = before  # the next image may fit
                    raise
            # Outside `except`, where no traceback holds the memory of the failed attempt.
            self._warn_of_smaller_strips()
            self.strip_bytes = engine.strip_bytes = engine.strip_bytes // 4
            torch.cuda.empty_cache()

    def _check_memory(self, H: int, W: int, B: int = 1) -> None:
        """Raise before work starts if memory is too small: Linux would kill the process instead of raising."""
        if self.engine is None:
            return
        if self.tile is None:
            self._fitting(self.engine, H, W)
            return
        # Tiling also keeps three buffers of full size: the image, the sum of the tiles, the sum of their weights.
        full_size = B * H * W * (2 * self.channels + 1) * self.engine.full_dtype.itemsize
        side = self.tile
        self._fitting(
            self.engine, min(H, side), min(W, side), full_size, f'an image of {W}×{H} pixels in tiles'
        )

    def _fitting(self, engine: StripEngine, H: int, W: int, beside: int = 0, what: str = '') -> StripEngine:
        """A copy of the engine (other threads may use it) with strips that fit beside that many other bytes. Raises
        RestoreError, naming `what`, if no strips do."""
        engine = copy.copy(engine)
        padded = H + -H % self.multiple, W + -W % self.multiple
        engine.strip_bytes, engine.progress = self.strip_bytes, self.progress
        limit = self.memory_limit if self.memory_limit is not None else free_memory(self.device)
        if limit is None or engine.memory(*padded) <= limit - beside:
            return engine
        fixed = self.fixed_strips and self.device.type == 'cpu'  # on a GPU, strips shrink all the same
        if fixed or not engine.fit(*padded, limit - beside):
            engine.strip_bytes = self.strip_bytes if fixed else 1
            available = 'are free' if self.memory_limit is None else 'are allowed'
            half = '' if engine.dtype.itemsize < 4 or beside else 'precision bf16 needs about half of it, '
            kind, smaller = ('an image', 'tiles') if self.tile is None else ('a tile', 'smaller tiles')
            less = '' if beside > limit else f'; {half}{smaller} still less'
            raise RestoreError(
                f'{what or f"{kind} of {W}×{H} pixels"} needs {(engine.memory(*padded) + beside) / 1e9:.2f} GB of '
                f'memory on {self.device}, and {limit / 1e9:.2f} GB {available}{less}'
            )
        if self.fixed_strips:
            self._warn_of_smaller_strips()
        return engine

    def _warn_of_smaller_strips(self) -> None:
        if not self.warned:
            get_logger().warning('%s is out of memory: continuing with smaller strips', self.device)
            self.warned = True


def _native(image: np.ndarray) -> np.ndarray:
    """The image in the processor's byte order, without an axis of 1. Raises ValueError on other shapes and types."""
    image = image[..., 0] if image.shape[2:] == (1,) else image
    image = image.astype(image.dtype.newbyteorder('='), copy=False)
    check_pixels(image)
    return image


def _too_large(H: int, W: int, device: torch.device) -> str:
    return f'an image of {W}×{H} pixels does not fit into the memory of {device}'


def check_arguments(
    net: nn.Module,
    multiple: int,
    tlc: bool | SupportsIndex | None,
    tile: int | None,
    tile_overlap: int | None,
) -> int | None:
    """Checks the arguments of a Restorer. Returns the side of TLC's windows in pixels, or None without TLC. Raises
    ValueError."""
    if multiple < 1:
        raise ValueError(f'multiple: found {multiple}; allowed: 1 or more')
    if isinstance(net, Restormer) and multiple % Restormer.multiple:
        raise ValueError(
            f'multiple: found {multiple}; allowed: a multiple of {Restormer.multiple}, for Restormer'
        )
    if tile is not None:
        checked_overlap(tile, tile_overlap, multiple)
    elif tile_overlap is not None:
        raise ValueError(f'tile_overlap: found {tile_overlap} without tile; allowed: together with tile')
    is_flag = isinstance(tlc, (bool, np.bool_))
    if tlc is None or (is_flag and not tlc):
        return None
    if not runs_in_strips(net):
        raise ValueError(f'tlc: found {tlc} for the network {type(net).__name__}; allowed: for Restormer alone')
    window = DEFAULT_WINDOW if is_flag else _integer('tlc', tlc)
    if window < Restormer.multiple or window % Restormer.multiple:
        raise ValueError(f'tlc: found {tlc}; allowed: a window of a positive multiple of {Restormer.multiple}')
    return window


def _integer(name: str, value: SupportsIndex) -> int:
    """A Python integer, as those of NumPy overflow. Raises ValueError."""
    if not isinstance(value, (bool, np.bool_)):
        with suppress(TypeError):
            return operator.index(value)
    raise ValueError(f'{name}: found {value!r}; allowed: an integer')


def _image_channels(net: nn.Module) -> int:
    """Input channels of the network: those of its first convolution."""
    return next((module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d)), 3)


@contextmanager
def _out_of_memory_raises(message: str) -> Iterator[None]:
    """Turn the many errors for too little memory into a RestoreError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise RestoreError(message) from error
        raise


class ValidationOptions(Protocol):
    """The keys of an option file's `val` section that a Restorer needs."""

    precision: Literal['auto', 'fp32', 'bf16', 'fp16']
    tlc: bool | int
    tile: int | None
    tile_overlap: int | None
    window_size: int


def build_restorer(net: nn.Module, device: torch.device, val: ValidationOptions) -> Restorer:
    """Restorer for validation and testing. Results repeat bit for bit, as strips do not depend on free memory (except
    on a GPU that is too small for them, with a warning). Raises ValueError, RestoreError, DeviceError."""
    return Restorer(
        net,
        device,
        val.precision,
        tlc=val.tlc,
        tile=val.tile,
        tile_overlap=val.tile_overlap,
        multiple=val.window_size,
        fixed_strips=True,
    )
