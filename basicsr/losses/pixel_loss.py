"""Losses between pixels. Each takes prediction and target of one shape and is computed in single precision
at least, so that half precision inputs neither overflow in a sum nor underflow in a square."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from basicsr.utils.registry import LOSS_REGISTRY

Reduction = Literal['none', 'mean', 'sum']

# ITU-R BT.601 studio swing luma of RGB in [0, 1]; the offset 16 / 255 cancels in a difference
LUMA_WEIGHTS = (65.481 / 255, 128.553 / 255, 24.966 / 255)
PSNR_EPS = 1e-8  # added to the mean squared error: bounds the loss at -80 dB


def _difference(pred: Tensor, target: Tensor) -> Tensor:
    if pred.shape != target.shape:
        raise ValueError(
            f'target: found shape {tuple(target.shape)}; allowed: that of pred, {tuple(pred.shape)}'
        )
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    return pred.to(dtype) - target.to(dtype)


class _PixelwiseLoss(nn.Module):
    """loss_weight · reduction(penalty(pred − target))."""

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = 'mean') -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise ValueError(f'reduction: found {reduction!r}; allowed: {", ".join(get_args(Reduction))}')
        self.loss_weight = loss_weight
        self.reduction = reduction

    def penalty(self, difference: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Any one shape → a scalar, or that shape if reduction is 'none'; float32, or float64 if an input is.
        Raises ValueError if the shapes differ."""
        loss = self.penalty(_difference(pred, target))
        if self.reduction == 'mean':
            loss = loss.mean()
        elif self.reduction == 'sum':
            loss = loss.sum()
        return self.loss_weight * loss


@LOSS_REGISTRY.register()
class L1Loss(_PixelwiseLoss):
    """|pred − target|."""

    def penalty(self, difference: Tensor) -> Tensor:
        return difference.abs()


@LOSS_REGISTRY.register()
class MSELoss(_PixelwiseLoss):
    """(pred − target)²."""

    def penalty(self, difference: Tensor) -> Tensor:
        return difference.square()


@LOSS_REGISTRY.register()
class CharbonnierLoss(_PixelwiseLoss):
    """√((pred − target)² + eps²), an L1 loss that is smooth at zero (Charbonnier et al., ICIP 1994)."""

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = 'mean', eps: float = 1e-3) -> None:
        super().__init__(loss_weight, reduction)
        if not eps > 0:  # the slope of the root at zero would be NaN
            raise ValueError(f'eps: found {eps}; allowed: above 0')
        self.eps = eps

    def penalty(self, difference: Tensor) -> Tensor:
        return (difference.square() + self.eps**2).sqrt()


@LOSS_REGISTRY.register()
class PSNRLoss(nn.Module):
    """Minus the PSNR of images in [0, 1]: 10·log10(MSE + 1e-8) of each image, averaged over the batch.

    Args:
        loss_weight: factor of the loss.
        reduction: only 'mean'.
        toY: compare the luma (BT.601, 16/255 … 235/255) of RGB images.
    """

    def __init__(
        self, loss_weight: float = 1.0, reduction: Literal['mean'] = 'mean', toY: bool = False
    ) -> None:
        super().__init__()
        if reduction != 'mean':
            raise ValueError(f'reduction: found {reduction!r}; allowed: mean')
        self.loss_weight = loss_weight
        self.toY = toY

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Two (B, C, H, W), C = 3 with toY → a scalar. Raises ValueError on other shapes."""
        if pred.ndim != 4 or (self.toY and pred.shape[1] != 3):
            allowed = '(B, 3, H, W), as toY is on' if self.toY else '(B, C, H, W)'
            raise ValueError(f'pred: found shape {tuple(pred.shape)}; allowed: {allowed}')
        difference = _difference(pred, target)
        if self.toY:
            # Not a matrix product: autocast would run that in half precision. Not a tensor of weights: copying it to
            # a GPU waits for the GPU.
            red, green, blue = difference.unbind(dim=1)
            difference = red * LUMA_WEIGHTS[0] + green * LUMA_WEIGHTS[1] + blue * LUMA_WEIGHTS[2]
        mse_B = difference.square().flatten(1).mean(dim=1)
        return self.loss_weight * (10 / math.log(10)) * (mse_B + PSNR_EPS).log().mean()
