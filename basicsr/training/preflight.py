"""Whether a run's largest stage fits into memory, found out before its first iteration."""

from __future__ import annotations

import platform
import traceback
from contextlib import nullcontext
from math import gcd
from typing import Any

import torch
from torch import Tensor

from basicsr.data.sampler import SampleKey, Stages, TrainingBatches
from basicsr.data.transforms import collate
from basicsr.utils.errors import PreflightError
from basicsr.utils.logger import get_logger
from basicsr.utils.memory import free_memory, is_out_of_memory

# For the estimate on a CPU: sides of patches that are worked on in an instant, and what a step takes in all,
# relative to what it keeps for the gradients (measured: 1.08 to 1.25).
_SMALL_PATCHES = (32, 64)
_OVER_KEPT = 1.25

_UPDATE = 4  # copies of all parameters that an update may make: stacks of Muon, steps of the average


def check_memory(model: Any, stages: Stages, batches: TrainingBatches, train_set: Any) -> None:
    """Runs one step of the largest stage that is still to come, without its update: nothing of the run changes.

    Raises PreflightError, in every process, if it does not fit into the memory of one of them, or if a network that
    was to be compiled cannot be.
    """
    for stage in _largest(model, stages, batches):
        iteration = max(batches.first_iteration, 1 + sum(stages.iters[:stage]))
        keys = batches.micro_batch(iteration, batches.mine[0])
        batch = _batch_of(train_set, keys)
        shortage, taken = _rehearse(model, batch, stage)
        shortages = [text for text in model.process.gather(shortage) if text]
        if shortages:
            raise PreflightError(_advice(model.options, stages, stage, shortages[0]))
        get_logger().info('Stage %d takes the most memory%s: it fits.', stage + 1, taken)


def _batch_of(train_set: Any, keys: Any) -> dict[str, Any]:
    """Raises PreflightError where a dataset of the user's own is not one to train on."""
    try:
        return collate([train_set[key] for key in keys])
    except (LookupError, TypeError, AttributeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PreflightError(
            f'datasets.train: {type(train_set).__name__} gives no training sample ({type(error).__name__}: {error}, in '
            f'{place.filename}, line {place.lineno}); allowed: a set whose set[key], key a '
            f'{SampleKey.__module__}.SampleKey, is {{"lq", "gt", "name"}}'
        ) from error


def _largest(model: Any, stages: Stages, batches: TrainingBatches) -> list[int]:
    """The stage with the most pixels in a micro-batch, the one with the larger patch where two are equal; one each of
    those with checkpointing and those without."""
    first, last = stages.at(batches.first_iteration), stages.at(batches.last_iteration)
    largest: dict[bool, int] = {}
    for stage in range(first, last + 1):
        kind = model.checkpointing(stage)
        size, other = (
            (stages.batches[s] * stages.patches[s] ** 2, stages.patches[s])
            for s in (stage, largest.get(kind, stage))
        )
        if kind not in largest or size > other:
            largest[kind] = stage
    return sorted(largest.values())


def _rehearse(model: Any, batch: dict[str, Any], stage: int) -> tuple[str | None, str]:
    """What is missing, if anything; and what the stage takes, for the log, as far as that is known."""
    buffers = [buffer.clone() for buffer in model.net.buffers()]  # statistics, of networks that have some
    free = free_memory(model.device)  # before: what failed may still hold what it took
    try:
        return (_tried_on_gpu if model.device.type == 'cuda' else _tried)(model, batch, stage)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            there = f', and {_size(free)} are free' if free is not None else ''
            return f'one step takes more than there is{there}', ''
        if type(error).__module__.startswith(('torch._dynamo', 'torch._inductor')):
            said = ' '.join(f'{type(error).__name__}: {error}'.partition('\n\n')[0].split())
            raise PreflightError(
                f'train.compile: found true, but the network cannot be compiled here ({said}); allowed: false, or '
                'a machine with the compiler that PyTorch asks for'
            ) from None
        raise
    finally:
        model.optimizer.zero_grad()
        with torch.no_grad():
            for buffer, saved in zip(model.net.buffers(), buffers, strict=True):
                buffer.copy_(saved)
        if model.device.type == 'cuda':
            torch.cuda.empty_cache()


def _step(model: Any, batch: dict[str, Any], stage: int) -> None:
    """Without a word to the other processes: one of them may fail."""
    model.optimizer.zero_grad()
    with model.forward.no_sync() if model.process.world_size > 1 else nullcontext():
        model.gradient([batch], 0, stage)


def _later(model: Any) -> int:
    """Bytes that are not there yet in the first step: moments of the optimiser, and gradients beside the
    activations of a later micro-batch."""
    size = sum(parameter.nbytes for parameter in model.parameters)
    return size * (2 * (not model.optimizer.state) + (model.accumulate > 1))


def _tried(model: Any, batch: dict[str, Any], stage: int) -> tuple[str | None, str]:
    """Elsewhere than on a GPU, where to try it out may end with the process killed: it is estimated before, but for
    activations that are computed again."""
    taken = ''
    if not model.checkpointing(stage):
        estimate = _estimate(model, batch) + _later(model)
        free = free_memory(model.device)  # before any process goes on, and takes of it
        # The processes of a machine share its memory.
        everyone = model.process.gather((platform.node(), estimate))
        here = sum(size for node, size in everyone if node == platform.node())
        if free is not None and here > free:
            return f'it takes about {_size(here)}, and {_size(free)} are free', ''
        taken = f', about {_size(estimate)}'
    _step(model, batch, stage)
    return None, taken


def _tried_on_gpu(model: Any, batch: dict[str, Any], stage: int) -> tuple[str | None, str]:
    device = model.device
    free = free_memory(device)
    assert free is not None
    records, model.records = model.records, False  # a graph's memory is not seen by these statistics
    before = torch.cuda.memory_allocated(device)
    _step(model, batch, stage)  # libraries try their ways, with more memory than they will take
    torch.cuda.reset_peak_memory_stats(device)
    _step(model, batch, stage)
    needed = torch.cuda.max_memory_allocated(device) - before + _later(model)
    # The update can reuse the activations' memory, but not that of a graph.
    update = _UPDATE * sum(parameter.nbytes for parameter in model.parameters)
    model.records = records and needed + update <= free
    shortage = f'it takes {_size(needed)}, and {_size(free)} are free' if needed > free else None
    return shortage, f', {_size(needed)} of {_size(free)}'


def _estimate(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that a step takes on a CPU: from what small patches keep for the gradients, which grows as their area."""
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


def _size(size: float) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.0f} MB'


def _advice(options: Any, stages: Stages, stage: int, shortage: str) -> str:
    train = options.train
    batch, common = stages.batches[stage], gcd(*stages.batches)
    ways = []
    if common > 1:
        more = f'multiply {"num_gpu" if train.accumulate == "auto" else "train.accumulate"} by it'
        if train.accumulate == 'auto' and not options.num_gpu:  # 0 of them stay 0
            more = f'set train.accumulate to {common}'
        ways.append(
            f'divide mini_batch_sizes (batch_size_per_gpu) by {common} and {more}, which keeps the global batches'
        )
    elif batch > 1:
        ways.append(f'lower its mini_batch_sizes, {batch}, which makes its global batch smaller')
    ways.append('lower gt_sizes (gt_size)')
    if not train.activation_checkpointing:
        ways.append('set train.activation_checkpointing to true')
    if train.precision in ('fp32', 'fp64'):
        ways.append('set train.precision to bf16')
    return (
        f'Stage {stage + 1}, with {batch} {"patches" if batch > 1 else "patch"} of {stages.patches[stage]} pixels at '
        f'a time, does not fit into memory: {shortage}. To make it fit: {"; or ".join(ways)}.'
    )
