"""One training step of an image-to-image network."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from basicsr.archs.from_weights import load_pretrained
from basicsr.archs.restormer_arch import Restormer, TransformerBlock
from basicsr.data.sampler import accumulation, mixup_generator
from basicsr.data.transforms import to_float
from basicsr.data.types import Batch
from basicsr.inference import Restorer
from basicsr.inference.restorer import build_restorer
from basicsr.models.recorded import RecordedGradient
from basicsr.models.schedulers import Scheduler, learning_rate
from basicsr.options.sections import RunOptions
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.device import resolve_precision
from basicsr.utils.dist import Rank
from basicsr.utils.errors import CheckpointError, TrainingError
from basicsr.utils.logger import get_logger
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    LOSS_REGISTRY,
    MODEL_REGISTRY,
    OPTIMIZER_REGISTRY,
    SCHEDULER_REGISTRY,
)

# fp16: this many consecutive steps without a finite gradient end the run. Each halves the loss scale, which starts at
# 2^16; one that small is not the cause.
STEPS_WITHOUT_GRADIENT = 40


class NonFiniteError(TrainingError):
    """The loss or its gradient is not finite; `iteration` is the first such iteration."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f'the loss or its gradient was not finite in iteration {iteration}')
        self.iteration = iteration


@MODEL_REGISTRY.register()
class ImageCleanModel:
    """Network, losses, optimizer and averaged weights of one rank.

    A step accumulates the gradients of `accumulate` micro-batches. It never waits for the device: losses and gradient
    norm stay on it until `read_log` fetches them. The first non-finite step sets a flag that disables it and every
    later update, so weights and optimizer keep the last good state. (In fp16 gradients overflow often: only the step
    itself is skipped, and the loss scale becomes smaller.)

    Raises CheckpointError on weights that do not fit, DeviceError on a precision that the device does not have.
    """

    is_updating = False  # True after an update that failed halfway: the weights then belong to no iteration

    def __init__(self, options: RunOptions, device: torch.device, rank: Rank) -> None:
        assert options.train is not None
        self.options, self.train_options = options, options.train
        self.device, self.rank = device, rank
        train = options.train
        self.accumulate = accumulation(train.accumulate, options.num_gpu, rank.world_size)
        self.dtype = torch.float64 if train.precision == 'fp64' else torch.float32
        half = None if train.precision == 'fp64' else resolve_precision(train.precision, device)
        self.autocast: Callable[[], AbstractContextManager[Any]] = lambda: (
            torch.autocast(device.type, half) if half else nullcontext()
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)

        torch.manual_seed(options.manual_seed)
        self.net: nn.Module = ARCH_REGISTRY.build(options.network_g)
        path = options.path
        if path.pretrain_network_g is not None:
            load_pretrained(self.net, path.pretrain_network_g, path.strict_load_g, path.param_key_g)
        # Images, and so all activations, are channels-last. Weights are not: they are small, and
        # DistributedDataParallel wants gradients in their layout.
        self.net.to(device=device, dtype=self.dtype).train()
        self.parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.forward: Callable[[Tensor], Tensor] = self._compiled() if train.compile else self.net
        if rank.world_size > 1:
            self.forward = DistributedDataParallel(
                self.forward, [device] if device.type == 'cuda' else None, gradient_as_bucket_view=True
            )
        sections = {'pixel_opt': train.pixel_opt, **train.losses}
        self.losses: dict[str, nn.Module] = {
            name: LOSS_REGISTRY.build(section).to(device) for name, section in sections.items() if section
        }
        # Other networks and losses may wait for the device, draw random numbers in Python, or keep statistics.
        is_known = type(self.net) is Restormer and all(
            type(loss).__module__.startswith('basicsr.losses.') for loss in self.losses.values()
        )
        self.records = train.cuda_graph and is_known and device.type == 'cuda' and rank.world_size == 1
        self.recorded: RecordedGradient | None = None

        # Fused: one kernel, and the only kind that takes a flag on the device (`found_inf`).
        self.optimizer: torch.optim.Optimizer = OPTIMIZER_REGISTRY.build(
            train.optim_g, self.parameters, fused=True
        )
        self.base_lr: float = self.optimizer.defaults['lr']
        self.scheduler: Scheduler = SCHEDULER_REGISTRY.build(train.scheduler)
        self.averaged = [p.detach().clone() for p in self.parameters] if train.ema_decay else []

        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # iteration; 0: none
        self.skipped = torch.zeros_like(self.first_bad)  # consecutive steps, fp16 only
        self.terms = list(self.losses) if len(self.losses) > 1 else []  # logged beside the loss
        dtype = torch.float32 if device.type == 'mps' else torch.float64  # MPS has no float64
        self.loss_sums = torch.zeros(1 + len(self.terms), dtype=dtype, device=device)
        self.norm_sum = torch.zeros((), dtype=dtype, device=device)
        self.steps_summed = 0

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        # With DistributedDataParallel the compiler would split the network at its buckets, which fails with activation
        # checkpointing.
        torch._dynamo.config.optimize_ddp = not self.train_options.activation_checkpointing
        blocks = [module for module in self.net.modules() if isinstance(module, TransformerBlock)]
        if not blocks:
            return torch.compile(self.net, dynamic=False)
        # Compile block by block: blocks of one size share the compiled code. Every size in every stage is one more
        # version of it, and PyTorch's default limit is 8.
        for name in ('recompile_limit', 'cache_size_limit'):  # since PyTorch 2.6, and before
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 256)
        for block in blocks:
            block.compile(dynamic=False)
        return self.net

    # -------------------------------------------------------------- training

    def learning_rate(self, iteration: int) -> float:
        return learning_rate(self.scheduler, iteration, self.base_lr, self.train_options.warmup_iter)

    def step(self, micro_batches: Iterable[Batch], iteration: int, stage: int = 0) -> None:
        """Makes one update from `accumulate` micro-batches {'lq', 'gt'} of (B, C, H, W) images, uint8 or in [0, 1]."""
        train = self.train_options
        self.optimizer.zero_grad()
        losses = self.rank.mean(self.gradient(micro_batches, iteration, stage))
        self.is_updating = True
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.parameters, train.grad_clip_norm if train.use_grad_clip else float('inf')
        )
        masked = self._is_masked(losses[0], norm, iteration).float()
        for group in self.optimizer.param_groups:
            group['lr'] = self.learning_rate(iteration)
        # The protocol of GradScaler: a fused optimizer with `found_inf` 1 changes nothing, on the device.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, masked  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        self._average((1.0 - train.ema_decay) * (1.0 - masked))
        self.loss_sums += losses
        self.norm_sum += norm.nan_to_num(0.0, 0.0) if self.scaler.is_enabled() else norm
        self.steps_summed += 1
        self.is_updating = False

    def gradient(self, micro_batches: Iterable[Batch], iteration: int, stage: int) -> Tensor:
        """Accumulates the gradient of the mean loss of the micro-batches (times the loss scale, averaged over ranks) in
        `.grad`; call `optimizer.zero_grad` first.

        Returns the means over this rank's micro-batches: of the loss and, if there are several, of its terms.
        """
        if self.train_options.activation_checkpointing:
            setattr(self.net, 'checkpointing', self.checkpointing(stage))  # noqa: B010 - no declared attribute
        losses: list[Tensor] = []
        for number, batch in enumerate(micro_batches, self.rank.index * self.accumulate):
            lq, gt = self.to_device(batch['lq']), self.to_device(batch['gt'])
            lq, gt = self._mixup(lq, gt, iteration, number)
            if self.records and not losses:  # all micro-batches of a step have one shape
                self._record(lq, gt, stage)
            if self.records:
                assert self.recorded is not None
                losses.append(self.recorded.replay(lq, gt, add=bool(losses)))
                continue
            # Random numbers of a network (dropout) depend on the iteration and the micro-batch alone.
            torch.manual_seed(hash((self.options.manual_seed, iteration, number)) % 2**63)
            is_last = len(losses) + 1 == self.accumulate  # ranks reduce their gradients once per step
            with nullcontext() if is_last else self.no_sync():
                losses.append(self._backward(lq, gt))
        return torch.stack(losses).mean(dim=0)

    def no_sync(self) -> AbstractContextManager[None]:
        """Within it, backward does not reduce gradients over ranks."""
        return self.forward.no_sync() if isinstance(self.forward, DistributedDataParallel) else nullcontext()

    def _backward(self, lq: Tensor, gt: Tensor) -> Tensor:
        """Adds a micro-batch's share to the parameters' gradients. Returns its loss, and the terms if there are
        several."""
        with self.autocast():
            restored = self.forward(lq)
        terms = [loss(restored, gt) for loss in self.losses.values()]
        loss = reduce(operator.add, terms)
        self.scaler.scale(loss / self.accumulate).backward()
        values = [loss, *terms] if self.terms else [loss]
        return torch.cat([value.detach().reshape(1) for value in values])

    def _record(self, lq: Tensor, gt: Tensor, stage: int) -> None:
        """Records `_backward` for micro-batches of this shape, unless it is recorded or recording fails."""
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
        """Whether a stage recomputes its activations in backward instead of storing them."""
        asked = self.train_options.activation_checkpointing
        return asked if isinstance(asked, bool) else asked[stage]

    def _is_masked(self, loss: Tensor, norm: Tensor, iteration: int) -> Tensor:
        """Whether this step must not change the weights, as it or an earlier one is not finite; on the device."""
        bad = ~(loss.isfinite() & norm.isfinite())
        fatal = bad
        if self.scaler.is_enabled():
            self.skipped = torch.where(bad, self.skipped + 1, 0)
            fatal = ~loss.isfinite() | (self.skipped >= STEPS_WITHOUT_GRADIENT)
        self.first_bad = torch.where(fatal & (self.first_bad == 0), iteration, self.first_bad)
        return bad | (self.first_bad > 0)

    def to_device(self, image: Tensor) -> Tensor:
        image = to_float(image.to(self.device, non_blocking=True)).to(self.dtype)
        return image.contiguous(memory_format=torch.channels_last)

    def _mixup(self, lq: Tensor, gt: Tensor, iteration: int, micro_batch: int) -> tuple[Tensor, Tensor]:
        """Convex combinations of a batch with a permutation of itself (Zhang et al., 2018)."""
        mixing = self.train_options.mixing_augs
        if not mixing.mixup:
            return lq, gt
        generator = mixup_generator(self.options.manual_seed, iteration, micro_batch)
        if mixing.use_identity and generator.integers(2):
            return lq, gt
        weight = float(generator.beta(mixing.mixup_beta, mixing.mixup_beta))
        order = torch.from_numpy(generator.permutation(len(lq)))
        if self.device.type == 'cuda':  # a copy from pageable memory waits for the GPU
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
        """Waits for the device. Raises NonFiniteError if any step so far was not finite."""
        if iteration := int(self.first_bad):
            raise NonFiniteError(iteration)

    def read_log(self) -> dict[str, float]:
        """Means since the last call: `loss`, `grad_norm` and, if the loss has several terms, `loss_<name>` of each.
        Waits for the device; raises NonFiniteError."""
        self.raise_if_bad()
        loss, *terms = (total / self.steps_summed for total in self.loss_sums.tolist())
        values = {'loss': loss, 'grad_norm': float(self.norm_sum) / self.steps_summed}
        values |= {f'loss_{name}': term for name, term in zip(self.terms, terms, strict=True)}
        self.loss_sums.zero_()
        self.norm_sum.zero_()
        self.steps_summed = 0
        return values

    # -------------------------------------------------------------- weights and training state

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """The network's state dict, and the same with averaged parameters (None without train.ema_decay)."""
        params = self.net.state_dict()
        if not self.averaged:
            return params, None
        average_of = dict(zip(map(id, self.parameters), self.averaged, strict=True))
        # A parameter may have several names.
        named = [(name, id(each)) for name, each in self.net.named_parameters(remove_duplicate=False)]
        return params, {**params, **{name: average_of[key] for name, key in named if key in average_of}}

    def restorer(self) -> Restorer:
        """A Restorer with a copy of the averaged weights, or of the weights without train.ema_decay."""
        self.release()
        params, averaged = self.weights()
        try:
            net = copy.deepcopy(self.net)
        except RuntimeError:  # a network that keeps non-leaf tensors, as weight_norm does
            net = ARCH_REGISTRY.build(self.options.network_g).to(self.device, self.dtype)
        net.load_state_dict(averaged or params)
        return build_restorer(net, self.device, self.options.val)

    def save_weights(self, path: Path, iteration: int) -> None:
        params, averaged = self.weights()
        network = {'type': self.options.network_g.type, **self.options.network_g.arguments(plain=True)}
        save_checkpoint(path, params, network, iteration, averaged, self.options.val.tlc)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, and the sums for the log."""
        loss, *terms = self.loss_sums.clone()
        state = {
            'net': self.net.state_dict(),
            'averaged': self.averaged,
            'optimizer': self.optimizer.state_dict(),
            'optimizer_type': self.train_options.optim_g.type,
            'loss_sum': loss,
            'norm_sum': self.norm_sum,
            'steps_summed': self.steps_summed,
            'scaler': self.scaler.state_dict(),
            'left_out': self.skipped,
        }
        return {**state, 'term_sums': dict(zip(self.terms, terms, strict=True))} if terms else state

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError on the state of another network or optimizer."""
        # Keep the current options; load_state_dict would overwrite them. Every step sets the learning rate.
        options = [
            {key: value for key, value in group.items() if key not in ('params', 'lr')}
            for group in self.optimizer.param_groups
        ]
        current_type = self.train_options.optim_g.type
        try:
            self.net.load_state_dict(state['net'])
            self.optimizer.load_state_dict(state['optimizer'])
            if state.get('optimizer_type', current_type) != current_type:
                raise ValueError
        except (RuntimeError, ValueError):
            raise CheckpointError(
                'the state to resume from belongs to another network or optimizer; allowed: the network_g and '
                'optim_g.type that it was saved with, or a new run from its weights (path.pretrain_network_g)'
            ) from None
        for group, option in zip(self.optimizer.param_groups, options, strict=True):
            group.update(option)
        # If ema_decay was switched on since, the average starts from the weights.
        saved = state['averaged'] if len(state['averaged']) == len(self.averaged) else self.parameters
        for average, value in zip(self.averaged, saved, strict=False):
            average.copy_(value.detach())
        terms = state.get('term_sums', {})
        if terms.keys() >= set(self.terms):  # else the means start anew
            self.loss_sums.copy_(torch.stack([state['loss_sum'], *(terms[name] for name in self.terms)]))
            self.norm_sum.copy_(state['norm_sum'])
            self.steps_summed = state['steps_summed']
        if state.get('scaler'):
            self.scaler.load_state_dict(state['scaler'])
            self.skipped.copy_(state['left_out'])
