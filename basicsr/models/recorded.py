"""A training step's gradient as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn


class RecordedGradient:
    """Records forward pass, loss and backward pass of one micro-batch, and replays them for others of its shape.

    A Restormer's step is several thousand kernels, and launching them one by one takes a processor longer than a fast
    GPU takes to run them. A graph of them is launched at once. It computes what was recorded, with the weights as they
    are by then. Its memory is its own until it is deleted.

    Args:
        backward: (lq, gt) → loss; sets the gradients of `parameters`, and never waits for the device.
        parameters: whose gradients it makes.
        lq, gt: a micro-batch to record with.
        key: what else the recording depends on, for the caller.
        accumulates: whether `replay` will be asked to add up.
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
                # Compilers and libraries begin in a call that is not recorded.
                for _ in range(2):
                    _clear(parameters)
                    backward(self.lq, self.gt)
            torch.cuda.current_stream().wait_stream(warm_up)
            _clear(parameters)
            self.graph = torch.cuda.CUDAGraph()
            # Threads that pin memory for batches to come may go on. The stream is of this device: by default it would
            # be one that PyTorch keeps for all devices.
            with torch.cuda.graph(self.graph, stream=capture, capture_error_mode='thread_local'):
                self.loss = backward(self.lq, self.gt)
        self.parameters = [parameter for parameter in parameters if parameter.grad is not None]
        self.grads: list[Tensor] = [parameter.grad for parameter in self.parameters]  # type: ignore[misc]
        _clear(parameters)
        self.sums = [torch.empty_like(grad) for grad in self.grads] if accumulates else self.grads

    def replay(self, lq: Tensor, gt: Tensor, *, add: bool) -> Tensor:
        """Sets the parameters' gradients, or adds to those of the last replay, and returns the loss."""
        self.lq.copy_(lq)
        self.gt.copy_(gt)
        self.graph.replay()
        if add:
            torch._foreach_add_(self.sums, self.grads)
        elif self.sums is not self.grads:
            torch._foreach_copy_(self.sums, self.grads)
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total
        return self.loss.clone()


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
