"""Checks of an option file that take more than one key, or a look at the disk.

They read the plain data, not the checked options, so that they find their mistakes also in a file that has
others: all are reported together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from basicsr.data.sources import DataError
from basicsr.models.lr_scheduler import SCHEDULERS
from basicsr.utils.files import ROOT, resolve
from basicsr.utils.options import LoaderOptions, OptionError, load_options
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, Registry

Purpose = Literal['train', 'test']

GET_GOPRO = (
    'Motion_Deblurring/README.md says how to get and prepare the GoPro data; to try training without it, run '
    'python basicsr/train.py -opt options/Deblurring_Restormer_quickstart.yml'
)


def read_options(path: str | Path, settings: list[str], purpose: Purpose, world_size: int = 1) -> BaseModel:
    """The checked options of a file. Raises OptionError with every mistake that is in it."""
    options, data, mistakes = load_options(path, settings)
    mistakes += [f'{path}: {mistake}' for mistake in _cross_checks(data, purpose, world_size)]
    if mistakes or options is None:
        raise OptionError(mistakes)
    return options


def _at(data: Any, *keys: str, kind: type | tuple[type, ...] = object) -> Any:
    """The value at a path if it is there and of this kind, else None (then something else complains)."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, kind) and not (kind is int and isinstance(data, bool)) else None


def _cross_checks(data: dict[str, Any], purpose: Purpose, world_size: int) -> Iterator[str]:
    yield from _sections(data, purpose)
    for phase, dataset in (_at(data, 'datasets', kind=dict) or {}).items():
        if isinstance(dataset, dict) and (purpose == 'train' or phase != 'train'):
            yield from _dataset(phase, dataset, world_size)
    if purpose == 'train':
        yield from _stages(data)
        yield from _buildable(data, ('train', 'pixel_opt'), LOSS_REGISTRY)
        yield from _scheduler(data)
    yield from _buildable(data, ('network_g',), ARCH_REGISTRY)
    yield from _channels(data)
    for key in ('pretrain_network_g', 'resume_state'):
        name = _at(data, 'path', key, kind=str)
        if name and not resolve(name).is_file():
            yield f'path.{key}: found {name!r}, where there is no file; allowed: a file, or ~ for none'


def _sections(data: dict[str, Any], purpose: Purpose) -> Iterator[str]:
    datasets = _at(data, 'datasets', kind=dict)
    if purpose == 'train':
        if data.get('train') is None:
            yield 'train: found nothing; allowed: the training options (total_iter, optim_g, scheduler, pixel_opt, …)'
        if datasets is not None and 'train' not in datasets:
            yield f'datasets.train: found nothing, only {", ".join(datasets)}; allowed: a training set'
    elif datasets is not None and not set(datasets) - {'train'}:
        yield 'datasets: found no set to test on; allowed: one named val, test, test_1, …'
    if purpose == 'test' and not _at(data, 'path', 'pretrain_network_g'):
        yield 'path.pretrain_network_g: found nothing; allowed: the file of the weights to test'
    if datasets is None:
        return
    first_users: dict[str, str] = {}
    for phase, dataset in datasets.items():
        name = _at(dataset, 'name', kind=str) or phase
        if phase == 'train' or not isinstance(dataset, dict):
            continue
        if name in first_users:
            yield f'datasets.{phase}.name: found {name!r}, as in datasets.{first_users[name]}; allowed: a name of its own'
        if '/' in name or '\\' in name or not name.strip('. '):
            yield f'datasets.{phase}.name: found {name!r}; allowed: a name that can be a folder'
        first_users.setdefault(name, phase)


def _dataset(phase: str, dataset: dict[str, Any], world_size: int) -> Iterator[str]:
    missing = False
    for key in ('dataroot_lq', 'dataroot_gt', 'meta_info_file'):
        name = _at(dataset, key, kind=str)
        if name is None:
            continue
        path = resolve(name)
        if not (path.is_file() if key == 'meta_info_file' else path.exists()):
            missing = True
            hint = f' ({GET_GOPRO})' if _is_task_data(path) else ''
            what = 'file' if key == 'meta_info_file' else 'folder'
            yield f'datasets.{phase}.{key}: found {name!r}, where there is no {what}; allowed: an existing one{hint}'
    for key in ('gt_size', 'batch_size_per_gpu', 'dataroot_gt') if phase == 'train' else ():
        if dataset.get(key) is None:
            yield f'datasets.train.{key}: found nothing; allowed: a value; training needs this key'
    kind = _at(dataset, 'type', kind=str)
    if missing or kind not in DATASET_REGISTRY:
        return
    arguments = {
        key: value for key, value in dataset.items() if key != 'type' and key not in LoaderOptions.model_fields
    }
    # Whole images are not decoded to be counted.
    arguments.pop('in_memory', None)
    try:
        length = len(DATASET_REGISTRY.get(kind)(**arguments))
    except DataError as error:
        yield f'datasets.{phase}: {error}'
        return
    except TypeError:  # an unknown key or a wrong type: reported already, with the key
        return
    batch = _at(dataset, 'batch_size_per_gpu', kind=int)
    if phase == 'train' and batch:
        batch = max(
            [
                batch,
                *(size for size in _at(dataset, 'mini_batch_sizes', kind=list) or [] if isinstance(size, int)),
            ]
        )
        samples = length * (_at(dataset, 'dataset_enlarge_ratio', kind=int) or 1)
        if samples < batch * world_size:
            processes = f' on {world_size} processes' if world_size > 1 else ''
            yield (
                f'datasets.train: found {samples} samples; allowed: at least one batch, which is '
                f'{batch * world_size}{processes} (lower batch_size_per_gpu and mini_batch_sizes, or raise '
                'dataset_enlarge_ratio)'
            )


def _is_task_data(path: Path) -> bool:
    return path.is_relative_to(ROOT / 'Motion_Deblurring' / 'Datasets')


def _stages(data: dict[str, Any]) -> Iterator[str]:
    train = _at(data, 'datasets', 'train', kind=dict) or {}
    total = _at(data, 'train', 'total_iter', kind=int)
    keys = ('mini_batch_sizes', 'gt_sizes', 'iters')
    lists = {key: _at(train, key, kind=list) for key in keys}
    there = {key: value for key, value in lists.items() if value is not None}
    if there and len(there) < len(keys):
        absent = [key for key in keys if train.get(key) is None]
        if absent:
            yield f'datasets.train.{absent[0]}: found nothing; allowed: a list, as {", ".join(there)} is given'
    lengths = {key: len(value) for key, value in there.items()}
    if len(set(lengths.values())) > 1:
        found = ', '.join(f'{key} with {length}' for key, length in lengths.items())
        yield f'datasets.train: found {found} stages; allowed: lists of the same length'
    if any(length == 0 for length in lengths.values()):
        yield 'datasets.train: found a list of no stages; allowed: one stage or more'
    for key, limit_key in (('gt_sizes', 'gt_size'), ('mini_batch_sizes', 'batch_size_per_gpu')):
        limit = _at(train, limit_key, kind=int)
        for value in there.get(key, []):
            if limit is not None and isinstance(value, int) and value > limit:
                yield f'datasets.train.{key}: found {value}; allowed: at most {limit_key}, {limit}'
    multiple = _multiple(data)
    for key, values in (
        ('gt_sizes', there.get('gt_sizes')),
        ('gt_size', None if there else [train.get('gt_size')]),
    ):
        for value in values or []:
            if isinstance(value, int) and value % multiple:
                yield f'datasets.train.{key}: found {value}; allowed: multiples of {multiple}, for this network'
    iters = there.get('iters')
    if iters and total is not None and all(isinstance(length, int) for length in iters) and sum(iters) < total:
        yield f'datasets.train.iters: found a sum of {sum(iters)}; allowed: at least total_iter, {total}'


def _multiple(data: dict[str, Any]) -> int:
    kind = _at(data, 'network_g', 'type', kind=str)
    return getattr(ARCH_REGISTRY.get(kind), 'multiple', 1) if kind in ARCH_REGISTRY else 1


def _scheduler(data: dict[str, Any]) -> Iterator[str]:
    section = _at(data, 'train', 'scheduler', kind=dict) or {}
    cls = SCHEDULERS.get(section.get('type'))  # type: ignore[arg-type]
    if cls is None:
        return
    try:
        scheduler = cls(**{key: value for key, value in section.items() if key != 'type'})
        covers = scheduler.covers
    except ValueError as error:
        yield f'train.scheduler: {error}'
        return
    except TypeError:  # reported already, with the key
        return
    total = _at(data, 'train', 'total_iter', kind=int)
    if covers is not None and total is not None and covers < total:
        key = 'periods' if 'periods' in section else 'total_iter'
        yield f'train.scheduler.{key}: found a sum of {covers}; allowed: at least total_iter, {total}'


def _buildable(data: dict[str, Any], keys: tuple[str, ...], registry: Registry) -> Iterator[str]:
    """Arguments that are right one by one may not fit together: the constructor has the last word."""
    section = _at(data, *keys, kind=dict) or {}
    if section.get('type') not in registry:
        return
    arguments = {key: value for key, value in section.items() if key != 'type'}
    try:
        with torch.device('meta'):
            registry.get(section['type'])(**arguments)
    except ValueError as error:
        yield f'{".".join(keys)}: {error}'
    except (TypeError, RuntimeError, IndexError):
        # A wrong type is reported already, with the key; and an architecture that cannot be made without
        # storage will be made with it.
        return


def _channels(data: dict[str, Any]) -> Iterator[str]:
    wanted = _at(data, 'network_g', 'inp_channels', kind=int)
    for phase, dataset in (_at(data, 'datasets', kind=dict) or {}).items():
        if wanted is not None and _at(dataset, 'type') == 'Dataset_PairedImage':
            given = dataset.get('channels', 3)
            if given in (1, 3) and given != wanted:
                yield f'network_g.inp_channels: found {wanted}; allowed: {given}, the channels of datasets.{phase}'
