"""Restoration of one image by one network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.inference.image_files import check_pixels
from basicsr.inference.strips import extra_inputs
from basicsr.inference.tasks import default_weights
from basicsr.utils.checkpoint import build_network, load_weights
from basicsr.utils.device import resolve_device, resolve_precision


class RestoreError(RuntimeError):
    """An image that this network cannot restore on this device."""


def restore_tensor(net: nn.Module, x_BCHW: Tensor, multiple: int | None = None) -> Tensor:
    """The network's output for images of any size: padded on the right and at the bottom to a multiple of
    `multiple` (by default the network's own attribute of that name, else 8), and cropped after.

    (B, C, H, W) in and out, values in [0, 1] in, not clamped out.
    """
    multiple = multiple or getattr(net, 'multiple', 8)
    H, W = x_BCHW.shape[-2:]
    x = _pad_right(x_BCHW, -W % multiple)
    x = _pad_right(x.mT, -H % multiple).mT
    return net(x, *extra_inputs(net))[..., :H, :W]


def _pad_right(x_BCHW: Tensor, pad: int) -> Tensor:
    if pad == 0:
        return x_BCHW
    # A side of n has n - 1 pixels to reflect.
    return F.pad(x_BCHW, (0, pad, 0, 0), mode='reflect' if x_BCHW.shape[-1] > pad else 'replicate')


class Restorer:
    """Restores images with one network, on one device.

    >>> restorer = Restorer.from_checkpoint('net_g_300000.pth', device='cuda')
    >>> sharp = restorer(blurred)  # (H, W), (H, W, 3) or (H, W, 4), uint8 or uint16, RGB; the same comes out

    Args:
        net: takes and returns (B, C, H, W), C = 1 or 3. It is moved to the device and set to eval mode.
        device: 'auto', 'cpu', 'cuda', 'cuda:1', …
        precision: 'auto', 'fp32', 'bf16', 'fp16'; see `resolve_precision`.

    A grey image goes through a 3-channel network as three equal channels, and their plain mean comes out
    (weights of 1/3: no channel is nearer to a grey scene than another). The channels of a colour image go
    through a 1-channel network one by one. Alpha comes out as it was. Results are rounded half to even.

    Raises DeviceError, ValueError on a network of other channels, RestoreError if it does not fit in memory.
    """

    def __init__(self, net: nn.Module, device: str | torch.device = 'auto', precision: str = 'auto') -> None:
        self.device = resolve_device(device)
        self.autocast_dtype = resolve_precision(precision, self.device)
        self.channels = _image_channels(net)
        with _memory_sentence(f'the network does not fit into the memory of {self.device}'):
            self.net = net.to(self.device, memory_format=torch.channels_last).eval()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device = 'auto',
        precision: str = 'auto',
    ) -> Restorer:
        """With the weights of a file, by default those for motion deblurring. Raises CheckpointError, too."""
        return cls(build_network(load_weights(path or default_weights('motion_deblurring'))), device, precision)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Raises ValueError on an array of another shape or type, RestoreError if memory does not suffice or
        the result is not finite."""
        image = np.asarray(image)
        check_pixels(image)
        H, W = image.shape[:2]
        full_scale = np.iinfo(image.dtype).max
        colour_HWC = image.reshape(H, W, -1)[..., :3]
        with _memory_sentence(f'an image of {W}×{H} pixels does not fit into the memory of {self.device}'):
            x_HWC = torch.from_numpy(colour_HWC.astype(np.float32)).to(self.device) / full_scale
            with torch.inference_mode(), self._autocast():
                y_BCHW = self._restore(x_HWC.permute(2, 0, 1).unsqueeze(0))
            if not y_BCHW.isfinite().all():
                raise RestoreError(
                    f'the result for {W}×{H} pixels is not finite: the weights are broken, or the precision is '
                    'too low for them (fp32 and bf16 have the range)'
                )
            y_HWC = (y_BCHW[0].permute(1, 2, 0).clamp(0, 1) * full_scale).round().to(torch.int32)
            restored = y_HWC.cpu().numpy().astype(image.dtype)
        if image.ndim == 2:
            return restored[..., 0]
        return np.concatenate([restored, image[..., 3:]], axis=2)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _restore(self, x_BCHW: Tensor) -> Tensor:
        C = x_BCHW.shape[1]
        if self.channels == C:
            return restore_tensor(self.net, x_BCHW).float()
        if C == 1:
            return restore_tensor(self.net, x_BCHW.repeat(1, 3, 1, 1)).float().mean(1, keepdim=True)
        # One by one, not as a batch: a third of the memory.
        return torch.cat([restore_tensor(self.net, x_B1HW).float() for x_B1HW in x_BCHW.split(1, dim=1)], dim=1)


def _image_channels(net: nn.Module) -> int:
    """Channels that the network takes: its first convolution is the one that sees the image."""
    channels = next((module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d)), 3)
    if channels not in (1, 3):
        raise ValueError(f'network: found one that takes {channels} channels; allowed: 1 or 3, as images have')
    return channels


@contextmanager
def _memory_sentence(sentence: str) -> Iterator[None]:
    """Turns running out of memory, which every allocator says differently, into a RestoreError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        said = ('out of memory', "can't allocate memory", 'not enough memory', 'alloc_failed')
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
            words in text for words in said
        ):
            raise RestoreError(sentence) from error
        raise
