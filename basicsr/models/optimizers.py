"""Optimizers. The keys of `train.optim_g` are the constructor parameters of the class that `type` names.

A constructor takes the network's parameters and, from the training step, `fused=True`. Every optimizer follows the
protocol of `torch.amp.GradScaler`: if the tensor `found_inf` is 1, a step changes nothing, without a wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from basicsr.options.sections import Positive, Rate, Share
from basicsr.utils.registry import OPTIMIZER_REGISTRY

Betas = Annotated[Sequence[Share], Field(min_length=2, max_length=2)]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the odd polynomial, from Jordan et al.
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2  # approximate root mean square of an AdamW update, from Liu et al.
SMALLEST_MATRIX = 16  # rows and columns; AdamW updates smaller matrices equally well


@OPTIMIZER_REGISTRY.register()
class Adam(torch.optim.Adam):
    """Adam (Kingma & Ba, ICLR 2015).

    Args:
        lr: base of the learning-rate schedule.
        weight_decay: added to the gradient, times the weight.
        betas: decay rates of the means of gradient and squared gradient.
        eps: added to the root in the denominator.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Rate,
        weight_decay: Rate = 0.0,
        betas: Betas = (0.9, 0.999),
        eps: Positive = 1e-8,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr, (betas[0], betas[1]), eps, weight_decay, fused=fused)


@OPTIMIZER_REGISTRY.register()
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019).

    Args:
        lr: base of the learning-rate schedule.
        weight_decay: a step scales the weights by 1 − lr · weight_decay.
        betas: decay rates of the means of gradient and squared gradient.
        eps: added to the root in the denominator.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Rate,
        weight_decay: Rate = 0.01,
        betas: Betas = (0.9, 0.999),
        eps: Positive = 1e-8,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr, (betas[0], betas[1]), eps, weight_decay, fused=fused)


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) → approximately U Vᵀ of each matrix's singular value decomposition U S Vᵀ, by matrix products
    alone: singular values between 0.7 and 1.2. Zeros stay 0, and values close to 0 stay small."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    # The clamp is where the squares under the root underflow.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    # Each step maps x to (a + b·x xᵀ + c·(x xᵀ)²) x. Most matrices are wide: iterate on x xᵀ, which is smaller, and
    # multiply x once, by the product of all factors.
    square = x @ x.mT
    factor = product = _factor(square)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        square = factor @ square @ factor
        factor = _factor(square)
        product = factor @ product
    x = product @ x
    return x.mT if is_tall else x


def _factor(square: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


@OPTIMIZER_REGISTRY.register()
class Muon(torch.optim.AdamW):
    """Momentum with an orthogonal direction for the weights of convolutions that mix channels, as matrices
    (out, in·kh·kw); AdamW for all others (depthwise convolutions, norms, biases, temperatures).

    Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with updates as large as
    those of AdamW, so that both take one learning rate: Liu et al., "Muon is scalable for LLM training" (arXiv
    2502.16982).

    Args:
        lr: base of the learning-rate schedule.
        momentum: decay rate of the matrices' mean gradient.
        weight_decay: a step scales the weights by 1 − lr · weight_decay.
        betas, eps: AdamW's, for all other weights.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: Rate,
        momentum: Share = 0.95,
        weight_decay: Rate = 0.01,
        betas: Betas = (0.9, 0.999),
        eps: Positive = 1e-8,
        fused: bool | None = None,
    ) -> None:
        by_kind: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for parameter in params:
            by_kind[_is_matrix(parameter)].append(parameter)
        groups = [{'params': group, 'orthogonal': kind} for kind, group in by_kind.items() if group]
        super().__init__(groups, lr, (betas[0], betas[1]), eps, weight_decay, fused=fused)
        for group in self.param_groups:
            if group['orthogonal']:
                group['momentum'] = momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group['orthogonal']]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group['orthogonal']:
                self._step_of_matrices(group)

    def _step_of_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in group['params']:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
        taken: float | Tensor = 1.0
        if self.found_inf is not None:
            taken = 1.0 - self.found_inf.to(group['params'][0].dtype)
        decay = 1.0 - taken * group['lr'] * group['weight_decay']
        for shape, parameters in by_shape.items():
            for parameter in parameters:
                if not self.state[parameter]:
                    # AdamW requires `step` in every state.
                    first = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    self.state[parameter].update(step=first, momentum_buffer=torch.zeros_like(parameter))
            states = [self.state[parameter] for parameter in parameters]
            buffers = [state['momentum_buffer'] for state in states]
            gradient = torch.stack([each.grad.flatten(1) for each in parameters if each.grad is not None])
            before = torch.stack([buffer.flatten(1) for buffer in buffers])
            mean = before.lerp(gradient, 1 - group['momentum'])
            update = orthogonal(gradient.lerp(mean, group['momentum']))
            if isinstance(taken, Tensor):
                mean, update = torch.where(taken > 0, mean, before), torch.where(taken > 0, update, 0.0)
            means, changes = (
                [one.view_as(p) for one, p in zip(x, parameters, strict=True)] for x in (mean, update)
            )
            # One kernel for all matrices: most are small, and launching a kernel takes longer than running it.
            torch._foreach_copy_(buffers, means)
            torch._foreach_mul_(parameters, decay)
            torch._foreach_add_(parameters, changes, alpha=-group['lr'] * UPDATE_RMS * max(shape) ** 0.5)
            # A list, as PyTorch converts a single tensor to a number, which waits for the GPU.
            torch._foreach_add_([state['step'] for state in states], [taken] * len(states))  # type: ignore[list-item]


def _is_matrix(parameter: nn.Parameter) -> bool:
    # The weight of a depthwise convolution has one input channel.
    return parameter.ndim > 1 and parameter.shape[1] > 1 and min(parameter.flatten(1).shape) >= SMALLEST_MATRIX
