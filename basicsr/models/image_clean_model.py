"""One step of training an image-to-image network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from basicsr.data.paired_image_dataset import to_float
from basicsr.data.stages import mixup_generator
from basicsr.inference import Restorer
from basicsr.models.lr_scheduler import SCHEDULERS, learning_rate
from basicsr.models.pretrained import load_pretrained
from basicsr.models.validation import build_restorer
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.dist import Process
from basicsr.utils.options import arguments, build
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

OPTIMIZERS = {'Adam': torch.optim.Adam, 'AdamW': torch.optim.AdamW}


class NonFiniteError(RuntimeError):
    """The loss or the gradient was not finite; `iteration` is the first one that was not."""

    def __init__(self, iteration: int) -> None:
        super().__init__(f'the loss or its gradient was not finite in iteration {iteration}')
        self.iteration = iteration


@MODEL_REGISTRY.register()
class ImageCleanModel:
    """Network, loss, optimiser and averaged weights of one process.

    A step never waits for the device: the loss, the norm and the flag of a non-finite step stay there until
    `read_log` fetches them. From the first non-finite step on, that flag masks every update, so that weights
    and optimiser keep the state before it.
    """

    def __init__(self, options: BaseModel, device: torch.device, process: Process) -> None:
        self.options: Any = options
        self.device, self.process = device, process
        torch.manual_seed(options.manual_seed)
        self.net: nn.Module = build(ARCH_REGISTRY, options.network_g)
        if options.path.pretrain_network_g is not None:
            load_pretrained(self.net, options.path)
        self.net.to(device=device, memory_format=torch.channels_last).train()
        self.parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.forward: Callable[[Tensor], Tensor] = self.net
        if process.world_size > 1:
            self.forward = DistributedDataParallel(self.net, [device] if device.type == 'cuda' else None)
        self.loss = build(LOSS_REGISTRY, options.train.pixel_opt).to(device)

        train = options.train
        settings = arguments(train.optim_g)
        self.base_lr = settings['lr']
        # Fused: one kernel, and the only kind that takes a flag on the device (`found_inf`).
        self.optimizer = OPTIMIZERS[train.optim_g.type](self.parameters, fused=True, **settings)
        self.scheduler = SCHEDULERS[train.scheduler.type](**arguments(train.scheduler))
        self.averaged = [p.detach().clone() for p in self.parameters] if train.ema_decay else []

        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none
        self.loss_sum = torch.zeros(
            (), dtype=torch.float64 if device.type != 'mps' else torch.float32, device=device
        )
        self.norm_sum = torch.zeros_like(self.loss_sum)
        self.steps_summed = 0

    # -------------------------------------------------------------- training

    def learning_rate(self, iteration: int) -> float:
        return learning_rate(self.scheduler, iteration, self.base_lr, self.options.train.warmup_iter)

    def step(self, batch: dict[str, Any], iteration: int) -> None:
        """One update from a batch {'lq', 'gt'} of (B, C, H, W) images, uint8 or in [0, 1]."""
        train = self.options.train
        # Whatever a network draws (dropout) depends on the iteration and the process alone.
        torch.manual_seed(hash((self.options.manual_seed, iteration, self.process.rank)) % 2**63)
        lq, gt = (self._to_device(batch[kind]) for kind in ('lq', 'gt'))
        lq, gt = self._mixup(lq, gt, iteration)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == 'bf16'):
            restored = self.forward(lq)
        loss = self.loss(restored, gt)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            self.parameters, train.grad_clip_norm if train.use_grad_clip else float('inf')
        )
        loss = self.process.mean(loss.detach())

        bad = ~(loss.isfinite() & norm.isfinite())
        self.first_bad = torch.where(bad & (self.first_bad == 0), iteration, self.first_bad)
        masked = (self.first_bad > 0).float()
        for group in self.optimizer.param_groups:
            group['lr'] = self.learning_rate(iteration)
        # The protocol of GradScaler: a fused optimiser with `found_inf` 1 changes nothing, on the device.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, masked  # type: ignore[attr-defined]
        self.optimizer.step()
        self._average((1.0 - train.ema_decay) * (1.0 - masked))
        self.loss_sum += loss
        self.norm_sum += norm
        self.steps_summed += 1

    def _to_device(self, image: Tensor) -> Tensor:
        return to_float(image.to(self.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)

    def _mixup(self, lq: Tensor, gt: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Convex combinations of a batch with a permutation of itself (Zhang et al., 2018)."""
        mixing = self.options.train.mixing_augs
        if not mixing.mixup:
            return lq, gt
        generator = mixup_generator(self.options.manual_seed, iteration)
        if mixing.use_identity and generator.integers(2):
            return lq, gt
        weight = float(generator.beta(mixing.mixup_beta, mixing.mixup_beta))
        order = torch.from_numpy(generator.permutation(len(lq))).to(self.device)
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
        names = [name for name, parameter in self.net.named_parameters() if parameter.requires_grad]
        return params, {**params, **dict(zip(names, self.averaged, strict=True))}

    def restorer(self) -> Restorer:
        """With a copy of the averaged weights, where there are any, else of the weights as they are."""
        params, averaged = self.weights()
        net = copy.deepcopy(self.net)
        net.load_state_dict(averaged or params)
        return build_restorer(net, self.device, self.options.val)

    def save_weights(self, path: Any, iteration: int) -> None:
        params, averaged = self.weights()
        network = {'type': self.options.network_g.type, **arguments(self.options.network_g)}
        save_checkpoint(path, params, network, iteration, averaged)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            'net': self.net.state_dict(),
            'averaged': self.averaged,
            'optimizer': self.optimizer.state_dict(),
            'loss_sum': self.loss_sum,
            'norm_sum': self.norm_sum,
            'steps_summed': self.steps_summed,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state['net'])
        self.optimizer.load_state_dict(state['optimizer'])
        if len(state['averaged']) == len(self.averaged):
            for mine, saved in zip(self.averaged, state['averaged'], strict=True):
                mine.copy_(saved)
        elif self.averaged:  # ema_decay was switched on since: the average begins here
            for mine, parameter in zip(self.averaged, self.parameters, strict=True):
                mine.copy_(parameter.detach())
        self.loss_sum.copy_(state['loss_sum'])
        self.norm_sum.copy_(state['norm_sum'])
        self.steps_summed = state['steps_summed']
