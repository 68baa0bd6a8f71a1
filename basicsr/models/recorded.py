"""The gradient of a training step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn


class RecordedGradient:
    """Records forward pass, losses and backward pass of one micro-batch, and replays them for others of its shape.

    A Restormer's step takes several thousand kernels, and launching them one by one takes a CPU longer than a fast GPU
    takes to run them. A graph launches all at once. A replay uses the current weights. The graph's memory is its own
    until it is deleted.

    Args:
        backward: (lq, gt) → losses; sets the gradients of `parameters`, and never waits for the device.
        parameters: the ones whose gradients `backward` sets.
        lq, gt: a micro-batch to record with.
        key: what else the recording depends on, for the caller.
        accumulates: whether `replay` will be called with `add`.
    """

    def __init__(
        self,
        backward: Callable[[Tensor, Tensor], Tensor],
        parameters: list[nn.Parameter],
        lq: Tensor,
        gt: Tensor,
        key: Hashable,
        accumulates: bool,
    ) -> None:
        self.key = key
        with torch.cuda.device_of(lq):
            self.lq, self.gt = torch.empty_like(lq).copy_(lq), torch.empty_like(gt).copy_(gt)
            warm_up, capture = torch.cuda.Stream(), torch.cuda.Stream()
            warm_up.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm_up):
                for _ in range(2):  # compilers and libraries initialise outside the recording
                    _clear(parameters)
                    backward(self.lq, self.gt)
            torch.cuda.current_stream().wait_stream(warm_up)
            _clear(parameters)
            self.graph = torch.cuda.CUDAGraph()
            # Thread-local errors: loader threads may pin memory meanwhile. Pass a stream of this device: PyTorch's
            # default is one stream for all devices.
            with torch.cuda.graph(self.graph, stream=capture, capture_error_mode='thread_local'):
                self.losses = backward(self.lq, self.gt)
        recorded = [(each, each.grad) for each in parameters if each.grad is not None]
        self.parameters = [parameter for parameter, _ in recorded]
        self.grads: list[Tensor] = [grad for _, grad in recorded]
        _clear(parameters)
        self.sums = [torch.empty_like(grad) for grad in self.grads] if accumulates else self.grads

    def replay(self, lq: Tensor, gt: Tensor, *, add: bool) -> Tensor:
        """Sets the parameters' gradients, or adds to those of the last replay, and returns the losses."""
        self.lq.copy_(lq)
        self.gt.copy_(gt)
        self.graph.replay()
        if add:
            torch._foreach_add_(self.sums, self.grads)
        elif self.sums is not self.grads:
            torch._foreach_copy_(self.sums, self.grads)
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total
        return self.losses.clone()


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
