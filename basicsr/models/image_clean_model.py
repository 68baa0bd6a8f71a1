"""One step of training an image-to-image network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from basicsr.archs.from_weights import load_pretrained
from basicsr.archs.restormer_arch import Restormer, TransformerBlock
from basicsr.data.sampler import accumulation, mixup_generator
from basicsr.data.transforms import to_float
from basicsr.inference import Restorer
from basicsr.inference.restorer import build_restorer
from basicsr.models.recorded import RecordedGradient
from basicsr.models.schedulers import learning_rate
from basicsr.options.components import arguments, build, plain_arguments
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.device import resolve_precision
from basicsr.utils.dist import Process
from basicsr.utils.errors import CheckpointError
from basicsr.utils.logger import get_logger
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    LOSS_REGISTRY,
    MODEL_REGISTRY,
    OPTIMIZER_REGISTRY,
    SCHEDULER_REGISTRY,
)

# With fp16: as many steps in a row without a finite gradient end the run. Each halves the factor of the loss, which
# begins at 2^16: if it is that small, the factor is not to blame.
STEPS_WITHOUT_GRADIENT = 40


class NonFiniteError(RuntimeError):
    """The loss or the gradient was not finite; `iteration` is the first one that was not."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f'the loss or its gradient was not finite in iteration {iteration}')
        self.iteration = iteration


@MODEL_REGISTRY.register()
class ImageCleanModel:
    """Network, loss, optimiser and averaged weights of one process.

    A step adds up the gradients of `accumulate` micro-batches. It never waits for the device: the loss, the norm
    and the flag of a non-finite step stay there until `read_log` fetches them. From the first non-finite step on,
    that flag masks every update, so that weights and optimiser keep the state before it. (With fp16 a gradient
    that is not finite is common: that step alone is left out, and the factor of the loss becomes smaller.)

    Raises CheckpointError on weights that do not fit, and DeviceError on a precision that the device does not have.
    """

    def __init__(self, options: BaseModel, device: torch.device, process: Process) -> None:
        self.options: Any = options
        self.device, self.process = device, process
        train = options.train
        self.accumulate = accumulation(train.accumulate, options.num_gpu, process.world_size)
        self.dtype = torch.float64 if train.precision == 'fp64' else torch.float32
        half = None if train.precision == 'fp64' else resolve_precision(train.precision, device)
        self.autocast = lambda: torch.autocast(device.type, half) if half else nullcontext()
        self.scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)

        torch.manual_seed(options.manual_seed)
        self.net: nn.Module = build(ARCH_REGISTRY, options.network_g)
        if options.path.pretrain_network_g is not None:
            load_pretrained(self.net, options.path.pretrain_network_g, options.path.strict_load_g)
        # The images are channels-last, and so is all that follows from them. Not the weights: they are small, and
        # DistributedDataParallel wants gradients laid out as they are.
        self.net.to(device=device, dtype=self.dtype).train()
        self.parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.forward: Callable[[Tensor], Tensor] = self._compiled() if train.compile else self.net
        if process.world_size > 1:
            self.forward = DistributedDataParallel(
                self.forward, [device] if device.type == 'cuda' else None, gradient_as_bucket_view=True
            )
        self.loss = build(LOSS_REGISTRY, train.pixel_opt).to(device)
        # Other networks and losses may wait for the device, draw random numbers in Python, or have statistics.
        is_known = type(self.net) is Restormer and type(self.loss).__module__.startswith('basicsr.losses.')
        self.records = train.cuda_graph and is_known and device.type == 'cuda' and process.world_size == 1
        self.recorded: RecordedGradient | None = None

        settings = arguments(train.optim_g)
        self.base_lr = settings['lr']
        # Fused: one kernel, and the only kind that takes a flag on the device (`found_inf`).
        self.optimizer = OPTIMIZER_REGISTRY.get(train.optim_g.type)(self.parameters, fused=True, **settings)
        self.scheduler = SCHEDULER_REGISTRY.get(train.scheduler.type)(**arguments(train.scheduler))
        self.averaged = [p.detach().clone() for p in self.parameters] if train.ema_decay else []

        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none
        self.left_out = torch.zeros_like(self.first_bad)  # steps in a row, with fp16
        self.loss_sum = torch.zeros(
            (), dtype=torch.float64 if device.type != 'mps' else torch.float32, device=device
        )
        self.norm_sum = torch.zeros_like(self.loss_sum)
        self.steps_summed = 0

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        # Together with DistributedDataParallel the compiler would cut the network into its buckets, and cannot
        # where activations are computed again.
        torch._dynamo.config.optimize_ddp = not self.options.train.activation_checkpointing
        blocks = [module for module in self.net.modules() if isinstance(module, TransformerBlock)]
        if not blocks:
            return torch.compile(self.net, dynamic=False)
        # Compile block by block: blocks of one size share the compiled code, and every size in every stage is one more
        # version of it, of which PyTorch allows 8.
        for name in ('recompile_limit', 'cache_size_limit'):  # since PyTorch 2.6, and before
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 256)
        for block in blocks:
            block.compile(dynamic=False)
        return self.net

    # -------------------------------------------------------------- training

    def learning_rate(self, iteration: int) -> float:
        return learning_rate(self.scheduler, iteration, self.base_lr, self.options.train.warmup_iter)

    def step(self, micro_batches: Iterable[dict[str, Any]], iteration: int, stage: int = 0) -> None:
        """One update from `accumulate` micro-batches {'lq', 'gt'} of (B, C, H, W) images, uint8 or in [0, 1]."""
        train = self.options.train
        self.optimizer.zero_grad()
        loss = self.process.mean(self.gradient(micro_batches, iteration, stage))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.parameters, train.grad_clip_norm if train.use_grad_clip else float('inf')
        )
        masked = self._is_left_out(loss, norm, iteration).float()
        for group in self.optimizer.param_groups:
            group['lr'] = self.learning_rate(iteration)
        # The protocol of GradScaler: a fused optimiser with `found_inf` 1 changes nothing, on the device.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, masked  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        self._average((1.0 - train.ema_decay) * (1.0 - masked))
        self.loss_sum += loss
        self.norm_sum += norm.nan_to_num(0.0, 0.0) if self.scaler.is_enabled() else norm
        self.steps_summed += 1

    def gradient(self, micro_batches: Iterable[dict[str, Any]], iteration: int, stage: int) -> Tensor:
        """Sets the parameters' gradients, which `optimizer.zero_grad` has cleared, to that of the mean of the
        micro-batches' losses, times the scaler's factor, and returns that mean over this process; the gradients are
        the mean over all."""
        if self.options.train.activation_checkpointing:
            self.net.checkpointing = self.checkpointing(stage)
        losses: list[Tensor] = []
        for number, batch in enumerate(micro_batches, self.process.rank * self.accumulate):
            lq, gt = (self.to_device(batch[kind]) for kind in ('lq', 'gt'))
            lq, gt = self._mixup(lq, gt, iteration, number)
            if self.records and not losses:  # all micro-batches of a step have one shape
                self._record(lq, gt, stage)
            if self.records:
                assert self.recorded is not None
                losses.append(self.recorded.replay(lq, gt, add=bool(losses)))
                continue
            # Whatever a network draws (dropout) depends on the iteration and the micro-batch alone.
            torch.manual_seed(hash((self.options.manual_seed, iteration, number)) % 2**63)
            with self._shared(last=len(losses) + 1 == self.accumulate):
                losses.append(self._backward(lq, gt))
        return torch.stack(losses).mean()

    def _backward(self, lq: Tensor, gt: Tensor) -> Tensor:
        """Adds a micro-batch's part to the parameters' gradients, and returns its loss."""
        with self.autocast():
            restored = self.forward(lq)
        loss = self.loss(restored, gt)
        self.scaler.scale(loss / self.accumulate).backward()
        return loss.detach()

    def _record(self, lq: Tensor, gt: Tensor, stage: int) -> None:
        """Records `_backward` for micro-batches like this one, unless it is recorded, or cannot be."""
        key = (lq.shape, self.checkpointing(stage))
        if self.recorded is not None and self.recorded.key == key:
            return
        self.release()
        try:
            self.recorded = RecordedGradient(
                self._backward, self.parameters, lq, gt, key, accumulates=self.accumulate > 1
            )
        except RuntimeError as error:
            self.records = False
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()
            get_logger().warning(
                'The step cannot be recorded as a CUDA graph (%s): its kernels are launched one by one.',
                str(error).splitlines()[0],
            )

    def release(self) -> None:
        """Frees the memory of the recorded graph, which nothing else can use; the next step records a new one."""
        if self.recorded is not None:
            self.recorded = None
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()

    def checkpointing(self, stage: int) -> bool:
        """Whether a stage computes its activations again instead of keeping them."""
        asked = self.options.train.activation_checkpointing
        return asked if isinstance(asked, bool) else asked[stage]

    def _shared(self, last: bool) -> AbstractContextManager[object]:
        """The processes add up their gradients once in a step, with those of the last micro-batch."""
        alone = self.process.world_size == 1
        return nullcontext() if last or alone else self.forward.no_sync()  # type: ignore[attr-defined]

    def _is_left_out(self, loss: Tensor, norm: Tensor, iteration: int) -> Tensor:
        """Whether a step, or one before it, must not change the weights; on the device."""
        bad = ~(loss.isfinite() & norm.isfinite())
        if not self.scaler.is_enabled():
            self._stop_at(bad, iteration)
            return self.first_bad > 0
        self.left_out = torch.where(bad, self.left_out + 1, 0)
        self._stop_at(~loss.isfinite() | (self.left_out >= STEPS_WITHOUT_GRADIENT), iteration)
        return bad | (self.first_bad > 0)

    def _stop_at(self, bad: Tensor, iteration: int) -> None:
        self.first_bad = torch.where(bad & (self.first_bad == 0), iteration, self.first_bad)

    def to_device(self, image: Tensor) -> Tensor:
        image = to_float(image.to(self.device, non_blocking=True)).to(self.dtype)
        return image.contiguous(memory_format=torch.channels_last)

    def _mixup(self, lq: Tensor, gt: Tensor, iteration: int, micro_batch: int) -> tuple[Tensor, Tensor]:
        """Convex combinations of a batch with a permutation of itself (Zhang et al., 2018)."""
        mixing = self.options.train.mixing_augs
        if not mixing.mixup:
            return lq, gt
        generator = mixup_generator(self.options.manual_seed, iteration, micro_batch)
        if mixing.use_identity and generator.integers(2):
            return lq, gt
        weight = float(generator.beta(mixing.mixup_beta, mixing.mixup_beta))
        order = torch.from_numpy(generator.permutation(len(lq)))
        if self.device.type == 'cuda':  # a copy from other memory waits until the GPU is idle
            order = order.pin_memory()
        order = order.to(self.device, non_blocking=True)
        return lq.lerp(lq[order], 1 - weight), gt.lerp(gt[order], 1 - weight)

    @torch.no_grad()
    def _average(self, weight: Tensor) -> None:
        if self.averaged:
            steps = torch._foreach_sub(self.parameters, self.averaged)
            torch._foreach_mul_(steps, weight)
            torch._foreach_add_(self.averaged, steps)

    def raise_if_bad(self) -> None:
        """Waits for the device. Raises NonFiniteError if a step since the start was not finite."""
        if iteration := int(self.first_bad):
            raise NonFiniteError(iteration)

    def read_log(self) -> dict[str, float]:
        """Means of loss and gradient norm since the last call. Waits for the device; raises NonFiniteError."""
        self.raise_if_bad()
        values = {
            'loss': float(self.loss_sum) / self.steps_summed,
            'grad_norm': float(self.norm_sum) / self.steps_summed,
        }
        self.loss_sum.zero_()
        self.norm_sum.zero_()
        self.steps_summed = 0
        return values

    # -------------------------------------------------------------- using and keeping the weights

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """The network's state dict; and the same with averaged parameters, if there are any."""
        params = self.net.state_dict()
        if not self.averaged:
            return params, None
        average_of = dict(zip(map(id, self.parameters), self.averaged, strict=True))
        # A parameter may have several names.
        named = [(name, id(each)) for name, each in self.net.named_parameters(remove_duplicate=False)]
        return params, {**params, **{name: average_of[key] for name, key in named if key in average_of}}

    def restorer(self) -> Restorer:
        """With a copy of the averaged weights, where there are any, else of the weights as they are."""
        self.release()
        params, averaged = self.weights()
        try:
            net = copy.deepcopy(self.net)
        except RuntimeError:  # one that keeps tensors which gradients flow through, as weight_norm does
            net = build(ARCH_REGISTRY, self.options.network_g).to(self.device, self.dtype)
        net.load_state_dict(averaged or params)
        return build_restorer(net, self.device, self.options.val)

    def save_weights(self, path: Any, iteration: int) -> None:
        params, averaged = self.weights()
        network = {'type': self.options.network_g.type, **plain_arguments(self.options.network_g)}
        save_checkpoint(path, params, network, iteration, averaged, self.options.val.tlc)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            'net': self.net.state_dict(),
            'averaged': self.averaged,
            'optimizer': self.optimizer.state_dict(),
            'optimizer_type': self.options.train.optim_g.type,
            'loss_sum': self.loss_sum,
            'norm_sum': self.norm_sum,
            'steps_summed': self.steps_summed,
            'scaler': self.scaler.state_dict(),
            'left_out': self.left_out,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError on the state of another network or optimiser."""
        # The options of today, which loading would replace by those of the state.
        options = [
            {key: value for key, value in group.items() if key != 'params'}
            for group in self.optimizer.param_groups
        ]
        now = self.options.train.optim_g.type
        try:
            self.net.load_state_dict(state['net'])
            self.optimizer.load_state_dict(state['optimizer'])
            if state.get('optimizer_type', now) != now:
                raise ValueError
        except (RuntimeError, ValueError):
            raise CheckpointError(
                'the state to go on from is of another network or optimiser; allowed: the network_g and optim_g.type '
                'that it was saved with, or a new run from its weights (path.pretrain_network_g)'
            ) from None
        for group, option in zip(self.optimizer.param_groups, options, strict=True):
            group.update(option)
        if len(state['averaged']) == len(self.averaged):
            for mine, saved in zip(self.averaged, state['averaged'], strict=True):
                mine.copy_(saved)
        elif self.averaged:  # ema_decay was switched on since: the average begins here
            for mine, parameter in zip(self.averaged, self.parameters, strict=True):
                mine.copy_(parameter.detach())
        self.loss_sum.copy_(state['loss_sum'])
        self.norm_sum.copy_(state['norm_sum'])
        self.steps_summed = state['steps_summed']
        if state.get('scaler'):
            self.scaler.load_state_dict(state['scaler'])
            self.left_out.copy_(state['left_out'])
