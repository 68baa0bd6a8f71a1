"""Whether a run's largest stage fits into memory, found out before its first iteration."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from basicsr.data.paired_image_dataset import collate
from basicsr.data.stages import Stages, TrainingBatches
from basicsr.inference.memory import free_memory, is_out_of_memory
from basicsr.utils.logger import get_logger

# For the estimate on a CPU: sides of patches that are worked on in an instant, and what a step takes in all,
# relative to what it keeps for the gradients (measured: 1.08 to 1.25).
_SMALL_PATCHES = (32, 64)
_OVER_KEPT = 1.25


class MemoryShortageError(RuntimeError):
    """A stage does not fit into memory; the message says what to lower."""


def check_memory(model: Any, stages: Stages, batches: TrainingBatches, train_set: Any) -> None:
    """Runs one step of the largest stage that is still to come, without its update: nothing of the run changes.

    Raises MemoryShortageError, in every process, if it does not fit into the memory of one of them.
    """
    for stage in _largest(model, stages, batches):
        keys = batches.micro_batch(1 + sum(stages.iters[:stage]), batches.mine[0])
        batch = collate([train_set[key] for key in keys])
        shortage, taken = _rehearse(model, batch, stage)
        shortages = [text for text in model.process.gather(shortage) if text]
        if shortages:
            raise MemoryShortageError(_advice(model.options, stages, stage, shortages[0]))
        get_logger().info('Stage %d takes the most memory%s: it fits.', stage + 1, taken)


def _largest(model: Any, stages: Stages, batches: TrainingBatches) -> list[int]:
    """The stage with the most pixels in a micro-batch; one each of those with checkpointing and those without."""
    first, last = stages.at(batches.first_iteration), stages.at(batches.last_iteration)
    largest: dict[bool, int] = {}
    for stage in range(first, last + 1):
        kind = model.checkpointing(stage)
        pixels = [stages.batches[s] * stages.patches[s] ** 2 for s in (stage, largest.get(kind, stage))]
        if kind not in largest or pixels[0] > pixels[1]:
            largest[kind] = stage
    return sorted(largest.values())


def _rehearse(model: Any, batch: dict[str, Any], stage: int) -> tuple[str | None, str]:
    """What is missing, if anything; and what the stage takes, for the log, as far as that is known."""
    buffers = [buffer.clone() for buffer in model.net.buffers()]  # statistics, of networks that have some
    try:
        return _tried(model, batch, stage)
    finally:
        model.optimizer.zero_grad()
        with torch.no_grad():
            for buffer, saved in zip(model.net.buffers(), buffers, strict=True):
                buffer.copy_(saved)
        if model.device.type == 'cuda':
            torch.cuda.empty_cache()


def _tried(model: Any, batch: dict[str, Any], stage: int) -> tuple[str | None, str]:
    device, on_gpu = model.device, model.device.type == 'cuda'
    free = free_memory(device)
    # What is not there yet: moments of the optimiser, and gradients beside the activations of a later micro-batch.
    later = _bytes(model.parameters) * (2 * (not model.optimizer.state) + (model.accumulate > 1))
    estimate = later
    if device.type == 'cpu' and not model.checkpointing(stage):
        estimate += _estimate(model, batch)
        if free is not None and estimate > free:
            return f'it takes about {_size(estimate)}, and {_size(free)} are free', ''
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    try:
        with model.forward.no_sync() if model.process.world_size > 1 else nullcontext():
            model.gradient([batch], 0, stage)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        there = f', and {_size(free)} are free' if free is not None else ''
        return f'one step takes more than there is{there}', ''
    if not on_gpu:
        return None, f', about {_size(estimate)}' if estimate > later else ''
    assert free is not None
    needed = torch.cuda.max_memory_allocated(device) - before + later
    shortage = f'it takes {_size(needed)}, and {_size(free)} are free' if needed > free else None
    return shortage, f', {_size(needed)} of {_size(free)}'


def _estimate(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that a step takes on a CPU, where to try it out may end with the process killed: from what small
    patches keep for the gradients, which grows as their area."""
    samples, patch = len(batch['lq']), batch['lq'].shape[-1]
    small, large = _SMALL_PATCHES
    if patch <= large:
        return int(_OVER_KEPT * samples * _kept(model, batch, patch))
    few, many = (_kept(model, batch, size) for size in (small, large))
    slope = (many - few) / (large**2 - small**2)
    return int(_OVER_KEPT * samples * (few + slope * (patch**2 - small**2)))


def _kept(model: Any, batch: dict[str, Any], patch: int) -> int:
    """Bytes that the forward pass of one patch keeps for the gradients."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.net.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    lq = model.to_device(batch['lq'][:1, :, :patch, :patch])
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), model.autocast():
        model.net(lq)
    return sum(size for place, size in kept.items() if place not in own)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size(size: float) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.0f} MB'


def _advice(options: Any, stages: Stages, stage: int, shortage: str) -> str:
    train = options.train
    batch = stages.batches[stage]
    ways = []
    if batch > 1:
        keeps = 'num_gpu' if train.accumulate == 'auto' else 'train.accumulate'
        ways.append(f'lower mini_batch_sizes (batch_size_per_gpu) and raise {keeps} by the same factor')
    ways.append('lower gt_sizes (gt_size)')
    if not train.activation_checkpointing:
        ways.append('set train.activation_checkpointing to true')
    if train.precision in ('fp32', 'fp64'):
        ways.append('set train.precision to bf16')
    return (
        f'Stage {stage + 1}, with {batch} {"patches" if batch > 1 else "patch"} of {stages.patches[stage]} pixels at '
        f'a time, does not fit into memory: {shortage}. To make it fit: {"; or ".join(ways)}.'
    )
