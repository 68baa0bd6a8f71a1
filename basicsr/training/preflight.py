"""Memory check before training: does a step of the largest stage fit?"""

from __future__ import annotations

import platform
import traceback
from math import gcd

import torch
from torch import Tensor

from basicsr.data.sampler import SampleKey, Stages, TrainingBatches
from basicsr.data.transforms import collate
from basicsr.data.types import Batch, PairedDataset
from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.utils.errors import PreflightError
from basicsr.utils.logger import get_logger
from basicsr.utils.memory import free_memory, is_out_of_memory

# CPU estimate: sides of small patches to measure, and a step's memory relative to the tensors saved for backward
# (measured: 1.08 to 1.25).
_SMALL_PATCHES = (32, 64)
_STEP_PER_SAVED = 1.25

_UPDATE_COPIES = 4  # of all parameters, at most, in an update: Muon's stacks, steps of the averaged weights


def check_memory(
    model: ImageCleanModel, stages: Stages, batches: TrainingBatches, train_set: PairedDataset
) -> None:
    """Runs one step of the largest remaining stage, without its update: the run's state does not change.

    Raises PreflightError, on every rank, if it does not fit into the memory of one of them, or if train.compile fails.
    """
    for stage in _largest(model, stages, batches):
        iteration = max(batches.first_iteration, 1 + sum(stages.iters[:stage]))
        batch = _load(train_set, batches.micro_batch(iteration, batches.mine[0]))
        shortage, need = _rehearse(model, batch, stage)
        shortages = [text for text in model.rank.gather(shortage) if text]
        if shortages:
            raise PreflightError(_advice(model, stages, stage, shortages[0]))
        get_logger().info('Stage %d takes the most memory%s: it fits.', stage + 1, need)


def _load(train_set: PairedDataset, keys: list[SampleKey]) -> Batch:
    """Raises PreflightError if a user's dataset does not take a SampleKey or return a training sample."""
    try:
        return collate([train_set[key] for key in keys])
    except (LookupError, TypeError, AttributeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PreflightError(
            f'datasets.train: {type(train_set).__name__} gives no training sample ({type(error).__name__}: {error}, in '
            f'{place.filename}, line {place.lineno}); allowed: a set whose set[key], key a '
            f'{SampleKey.__module__}.SampleKey, is {{"lq", "gt", "name"}}'
        ) from error


def _largest(model: ImageCleanModel, stages: Stages, batches: TrainingBatches) -> list[int]:
    """The remaining stage with the most pixels in a micro-batch, on a tie the one with larger patches; one each of the
    stages with and without activation checkpointing."""

    def size(stage: int) -> tuple[int, int]:
        return stages.batches[stage] * stages.patches[stage] ** 2, stages.patches[stage]

    kinds: dict[bool, list[int]] = {}
    for stage in range(stages.at(batches.first_iteration), stages.at(batches.last_iteration) + 1):
        kinds.setdefault(model.checkpointing(stage), []).append(stage)
    return sorted(max(kind, key=size) for kind in kinds.values())


def _rehearse(model: ImageCleanModel, batch: Batch, stage: int) -> tuple[str | None, str]:
    """Returns what is missing, if anything, and for the log what the stage takes, if known."""
    buffers = [buffer.clone() for buffer in model.net.buffers()]  # such as statistics of batch norms
    free = free_memory(model.device)  # before: a step that fails may still hold memory
    try:
        return (_run_on_gpu if model.device.type == 'cuda' else _run_on_cpu)(model, batch, stage)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            limit = f', and {_size(free)} are free' if free is not None else ''
            return f'one step takes more than there is{limit}', ''
        if type(error).__module__.startswith(('torch._dynamo', 'torch._inductor')):
            reason = ' '.join(f'{type(error).__name__}: {error}'.partition('\n\n')[0].split())
            raise PreflightError(
                f'train.compile: found true, but the network cannot be compiled here ({reason}); allowed: false, or '
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


def _step(model: ImageCleanModel, batch: Batch, stage: int) -> None:
    """Without gradient synchronisation, as another rank may fail here."""
    model.optimizer.zero_grad()
    with model.no_sync():
        model.gradient([batch], 0, stage)


def _later(model: ImageCleanModel) -> int:
    """Bytes that the first micro-batch does not need yet: moments of the optimizer, and gradients that exist beside the
    activations of later micro-batches."""
    size = sum(parameter.nbytes for parameter in model.parameters)
    return size * (2 * (not model.optimizer.state) + (model.accumulate > 1))


def _run_on_cpu(model: ImageCleanModel, batch: Batch, stage: int) -> tuple[str | None, str]:
    """Estimates first, as Linux may kill a process that runs out of memory; except with activation checkpointing, where
    the estimate does not apply."""
    need = ''
    if not model.checkpointing(stage):
        estimate = _estimate(model, batch) + _later(model)
        free = free_memory(model.device)  # before any rank takes its share
        ranks = model.rank.gather((platform.node(), estimate))
        total = sum(size for node, size in ranks if node == platform.node())  # ranks of a node share its memory
        if free is not None and total > free:
            return f'it takes about {_size(total)}, and {_size(free)} are free', ''
        need = f', about {_size(estimate)}'
    _step(model, batch, stage)
    return None, need


def _run_on_gpu(model: ImageCleanModel, batch: Batch, stage: int) -> tuple[str | None, str]:
    device = model.device
    free = free_memory(device)
    assert free is not None
    records, model.records = model.records, False  # these statistics do not count a graph's memory
    before = torch.cuda.memory_allocated(device)
    _step(model, batch, stage)  # libraries try algorithms, some with more memory than the one they choose
    torch.cuda.reset_peak_memory_stats(device)
    _step(model, batch, stage)
    need = torch.cuda.max_memory_allocated(device) - before + _later(model)
    # The update can reuse the activations' memory, but not that of a graph.
    update = _UPDATE_COPIES * sum(parameter.nbytes for parameter in model.parameters)
    model.records = records and need + update <= free
    shortage = f'it takes {_size(need)}, and {_size(free)} are free' if need > free else None
    return shortage, f', {_size(need)} of {_size(free)}'


def _estimate(model: ImageCleanModel, batch: Batch) -> int:
    """Bytes of a step on a CPU, from what small patches save for backward, which grows linearly with their area."""
    samples, patch = len(batch['lq']), batch['lq'].shape[-1]
    small, large = (min(size, patch) for size in _SMALL_PATCHES)
    few, many = (_saved(model, batch, size) for size in (small, large))
    slope = (many - few) / (large**2 - small**2) if large > small else 0
    return int(_STEP_PER_SAVED * samples * (many + slope * (patch**2 - large**2)))


def _saved(model: ImageCleanModel, batch: Batch, patch: int) -> int:
    """Bytes that the forward pass of one patch saves for backward."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.net.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    lq = model.to_device(batch['lq'][:1, :, :patch, :patch])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), model.autocast():
        model.net(lq)
    return sum(size for address, size in sizes.items() if address not in own)


def _size(size: float) -> str:
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.0f} MB'


def _advice(model: ImageCleanModel, stages: Stages, stage: int, shortage: str) -> str:
    train, batch, common = model.train_options, stages.batches[stage], gcd(*stages.batches)
    ways = ['lower gt_sizes (gt_size)']
    if common > 1:
        ways.insert(
            0,
            f'divide mini_batch_sizes (batch_size_per_gpu) by {common} and set train.accumulate to '
            f'{model.accumulate * common}, which keeps the global batches',
        )
    elif batch > 1:
        ways.insert(0, f'lower its mini_batch_sizes, {batch}, which makes its global batch smaller')
    if not train.activation_checkpointing:
        ways.append('set train.activation_checkpointing to true')
    if train.precision in ('fp32', 'fp64'):
        ways.append('set train.precision to bf16')
    return (
        f'Stage {stage + 1}, with {batch} {"patches" if batch > 1 else "patch"} of {stages.patches[stage]} pixels at '
        f'a time, does not fit into memory: {shortage}. To make it fit: {"; or ".join(ways)}.'
    )
