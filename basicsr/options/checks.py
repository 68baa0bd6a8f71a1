"""Checks of an option file that take more than one key, or a look at the disk.

They read the plain data, less what is wrong by itself, so that they find their mistakes also in a file that has
others: all are reported together.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel

from basicsr.data.sampler import accumulation
from basicsr.inference.restorer import check_arguments
from basicsr.metrics.metric import Metric
from basicsr.options.components import arguments, build, checked_section
from basicsr.options.option_file import Key, Mistake, dotted
from basicsr.options.sections import FOLDER_NAME, LoaderOptions, MetricOptions, ValOptions
from basicsr.tasks import TASKS
from basicsr.utils.errors import DataError
from basicsr.utils.files import ROOT, resolve
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    SCHEDULER_REGISTRY,
    Registry,
)
from basicsr.utils.text import show

Purpose = Literal['train', 'test']

QUICKSTART = (
    'python scripts/synthesize_blur.py, then '
    'python basicsr/train.py -opt options/Deblurring_Restormer_quickstart.yml'
)
STAGE_LISTS = ('mini_batch_sizes', 'gt_sizes', 'iters')


def _whole(key: Key) -> Key:
    """A list with a wrong item is wrong."""
    return tuple(takewhile(lambda step: isinstance(step, str), key))


def _unjudged(data: dict[str, Any], wrong: set[Key]) -> set[Key]:
    """The keys of sets without a right type, with which alone they are known."""
    datasets = data.get('datasets')
    return {
        ('datasets', phase, name)
        for phase, dataset in (datasets.items() if isinstance(datasets, dict) else ())
        if ('datasets', phase, 'type') in wrong
        for name in dataset
    }


def _without(data: Any, wrong: set[Key], key: Key = ()) -> Any:
    if not isinstance(data, dict):
        return data
    left = {name: _without(value, wrong, (*key, name)) for name, value in data.items()}
    return {name: value for name, value in left.items() if value is not None and (*key, name) not in wrong}


def _at(data: Any, *key: str) -> Any:
    for name in key:
        data = data.get(name) if isinstance(data, dict) else None
    return data


class _Checks:
    """`data` is right key by key, but incomplete: what is wrong, null or unknown is not in it."""

    def __init__(self, data: dict[str, Any], wrong: set[Key], purpose: Purpose, world_size: int) -> None:
        self.all, self.wrong = data, wrong
        self.data = _without(data, wrong)
        self.purpose, self.world_size = purpose, world_size
        datasets = _at(self.data, 'datasets') or {}
        self.train_set = datasets.get('train', {})
        self.test_sets = {phase: dataset for phase, dataset in datasets.items() if phase != 'train'}
        self.used_sets = datasets if purpose == 'train' else self.test_sets
        self.built_channels: dict[
            str, int
        ] = {}  # of sets that have no such key; known when they have been opened

    def run(self) -> Iterator[Mistake]:
        yield from self._sections()
        yield from self._names()
        yield from self._files()
        yield from self._datasets()
        if self.purpose == 'train':
            yield from self._training_set()
            yield from self._stages()
            yield from self._step()
            yield from self._scheduler()
            yield from self._loss()
        yield from self._network()
        yield from self._metrics()
        yield from self._precision()

    # -------------------------------------------------------------- what must be there

    def _sections(self) -> Iterator[Mistake]:
        datasets = _at(self.data, 'datasets')
        if self.purpose == 'test':
            if datasets is not None and not self.test_sets:
                text = 'found no set to test on; allowed: one of any name but train'
                yield Mistake(('datasets',), text)
            if not _at(self.data, 'path', 'pretrain_network_g'):
                text = 'found nothing; allowed: the file of the weights to test'
                yield Mistake(('path', 'pretrain_network_g'), text)
            return
        if _at(self.data, 'train') is None:
            text = 'found nothing; allowed: the options of training: total_iter, optim_g, scheduler, …'
            yield Mistake(('train',), text)
        if datasets is not None and 'train' not in datasets:
            found = f'only {", ".join(datasets)}' if datasets else 'nothing'
            yield Mistake(('datasets', 'train'), f'found {found}; allowed: a training set')
            return
        needed = ['gt_size', 'batch_size_per_gpu']
        if 'dataroot_gt' in _parameters(DATASET_REGISTRY, self.train_set.get('type')):
            needed.append('dataroot_gt')
        for name in needed if datasets is not None else ():
            if name not in self.train_set:
                yield Mistake(('datasets', 'train', name), 'found nothing; allowed: a value, to train')

    def _names(self) -> Iterator[Mistake]:
        users: dict[str, str] = {}
        folders: dict[Key, str] = {('name',): _at(self.data, 'name') or 'a'}
        for phase, dataset in self.test_sets.items():
            name = dataset.get('name', phase)
            key = ('datasets', phase, 'name') if 'name' in dataset else ('datasets', phase)
            folders[key] = name
            if name in users:
                found = f'{show(name)}, as the name of datasets.{users[name]}'
                yield Mistake(key, f'found {found}; allowed: a name of its own')
            users.setdefault(name, phase)
        for key, name in folders.items():
            if not re.match(FOLDER_NAME, name) or len(name.encode()) > 200:
                text = f'found {show(name)}; allowed: the name of a folder, at most 200 bytes, without slashes'
                yield Mistake(key, text)
        for name in {'name', 'iter', 'kind', 'dataset'} & {*(_at(self.data, 'val', 'metrics') or {})}:
            text = (
                f'found a metric called {show(name)}; allowed: another name, as results have a column of this'
            )
            yield Mistake(('val', 'metrics', name), text)

    # -------------------------------------------------------------- files and folders

    def _files(self) -> Iterator[Mistake]:
        for name in ('pretrain_network_g', *(['resume_state'] if self.purpose == 'train' else [])):
            file = _at(self.data, 'path', name)
            if file and not _exists(file, Path.is_file):
                allowed = 'a file' if self.purpose == 'test' else 'a file, or ~ for none'
                parts = _in_repository(file)
                published = any(
                    parts == (task.folder, 'pretrained_models', task.published) for task in TASKS.values()
                )
                hint = (
                    f'; python {parts[0]}/download_data.py --data weights gets the published one'
                    if published
                    else ''
                )
                text = f'found {show(file)}, where there is no file; allowed: {allowed}{hint}'
                yield Mistake(('path', name), text)
        groups: dict[str, list[tuple[Key, str]]] = {}
        for key, name in self._missing_roots():
            groups.setdefault(_how_to_get(name) or name, []).append((key, name))
        yield from map(self._no_data, groups.values())

    def _missing_roots(self) -> Iterator[tuple[Key, str]]:
        for phase, dataset in self.used_sets.items():
            for name in ('dataroot_gt', 'dataroot_lq', 'meta_info_file'):
                test = Path.is_file if name == 'meta_info_file' else Path.is_dir
                root = dataset.get(name)
                if isinstance(root, str) and not (root and _exists(root, test)):
                    yield ('datasets', phase, name), dataset[name]
            pack = dataset.get('dataroot') if dataset.get('type') == 'Dataset_PackedImage' else None
            if pack is not None and not _exists(pack, Path.is_dir):
                yield ('datasets', phase, 'dataroot'), pack

    def _no_data(self, missing: list[tuple[Key, str]]) -> Mistake:
        """One sentence for the newcomer, who has none of it."""
        (key, name), *others = missing
        kind = 'file' if key[-1] == 'meta_info_file' else 'folder'
        also = f' (as for {", ".join(dotted(other) for other, _ in others)})' if others else ''
        allowed = _how_to_get(name) or 'one that is there'
        if 'README' in allowed and self.purpose == 'train':
            allowed += f'; to try training without them, run {QUICKSTART}'
        return Mistake(key, f'found {show(name)}, where there is no {kind}{also}; allowed: {allowed}')

    # -------------------------------------------------------------- datasets

    def _datasets(self) -> Iterator[Mistake]:
        absent = {key[1] for key, _ in self._missing_roots()}
        for phase, dataset in self.used_sets.items():
            if phase in absent:
                continue
            key = ('datasets', phase)
            # How a set is loaded is another matter; and whole images need not be decoded to be counted.
            ignored = {
                'in_memory',
                *(name for name in LoaderOptions.model_fields if (*key, name) in self.wrong),
            }
            options = {name: value for name, value in _at(self.all, *key).items() if name not in ignored}
            section = checked_section(DATASET_REGISTRY, options, LoaderOptions)
            if section is None:
                continue
            try:
                built = build(DATASET_REGISTRY, section, LoaderOptions)
                length = len(built)
            except DataError as error:
                yield _refusal(key, section, error, 'pairs of images')
            except Exception as error:
                yield _refusal(key, section, error)
            else:
                channels = getattr(built, 'channels', None)
                if dataset['type'] != 'Dataset_PairedImage' and isinstance(channels, int):
                    self.built_channels[phase] = channels
                if phase == 'train' and (*key, 'dataset_enlarge_ratio') not in self.wrong:
                    yield from self._enough(length * dataset.get('dataset_enlarge_ratio', 1))

    def _enough(self, samples: int) -> Iterator[Mistake]:
        sizes = [self.train_set.get('batch_size_per_gpu', 1), *self.train_set.get('mini_batch_sizes', ())]
        try:
            count = self._micro_batches()
        except ValueError:  # said by `_step`
            return
        batch = max(sizes) * count
        if samples < batch:
            made_of = f' ({count} micro-batches of {max(sizes)})' if count > 1 else ''
            text = (
                f'found a set of {samples} sample{"s" * (samples != 1)}; allowed: at least one batch, '
                f'{batch}{made_of}; lower batch_size_per_gpu and mini_batch_sizes, or raise '
                'dataset_enlarge_ratio'
            )
            yield Mistake(('datasets', 'train'), text)

    def _training_set(self) -> Iterator[Mistake]:
        """Stages, patches and batches against their limits."""
        for names, limit_name in (('gt_sizes', 'gt_size'), ('mini_batch_sizes', 'batch_size_per_gpu')):
            limit = self.train_set.get(limit_name)
            for index, value in enumerate(self.train_set.get(names, ())):
                if limit is not None and value > limit:
                    text = f'found {value}; allowed: at most {limit_name}, {limit}'
                    yield Mistake(('datasets', 'train', names, index), text)

    def _stages(self) -> Iterator[Mistake]:
        there = {name: self.train_set[name] for name in STAGE_LISTS if name in self.train_set}
        total = _at(self.data, 'train', 'total_iter')
        for name in STAGE_LISTS:
            key = ('datasets', 'train', name)
            if there and name not in there:
                yield Mistake(key, f'found nothing; allowed: a list, as there is {" and ".join(there)}')
            elif there and not there[name]:
                yield Mistake(key, 'found no stage; allowed: one or more')
        lengths = {name: len(values) for name, values in there.items()}
        if len(set(lengths.values())) > 1:
            often = Counter(lengths.values())
            odd = min(lengths, key=lambda name: often[lengths[name]])
            found = ', '.join(f'{length} in {name}' for name, length in lengths.items())
            text = f'found stages of different number, {found}; allowed: lists of the same length'
            yield Mistake(('datasets', 'train', odd), text)
        if total is not None and there.get('iters') and sum(there['iters']) < total:
            text = f'found a sum of {sum(there["iters"])}; allowed: at least train.total_iter, {total}'
            yield Mistake(('datasets', 'train', 'iters'), text)

    def _step(self) -> Iterator[Mistake]:
        """How a step is computed."""
        train = _at(self.data, 'train') or {}
        try:
            self._micro_batches()
        except ValueError as error:
            yield Mistake(('num_gpu',), str(error))
        key = ('train', 'activation_checkpointing')
        asked = train.get(key[-1])
        stages = len(self.train_set.get('iters', [1]))
        if isinstance(asked, list) and len(asked) != stages:
            text = (
                f'found {len(asked)} items; allowed: true, false, or a list with one for each stage, {stages}'
            )
            yield Mistake(key, text)
        name = (_at(self.data, 'network_g') or {}).get('type')
        if asked and name and not hasattr(ARCH_REGISTRY.get(name), 'checkpointing'):
            text = f'found {show(asked)}; allowed: false, as {name} has no attribute `checkpointing`'
            yield Mistake(key, text)

    def _precision(self) -> Iterator[Mistake]:
        for section, others in (('train', 'fp32, bf16, fp64'), ('val', 'fp32, bf16')):
            if _at(self.data, section, 'precision') == 'fp16' and _at(self.data, 'num_gpu') == 0:
                text = f'found "fp16" on the CPU, where it is neither fast nor safe; allowed: {others}'
                yield Mistake((section, 'precision'), text)

    def _micro_batches(self) -> int:
        """Of a step, of all processes. Raises ValueError."""
        accumulate = _at(self.data, 'train', 'accumulate') or 1
        return self.world_size * accumulation(accumulate, self.data.get('num_gpu', 1), self.world_size)

    # -------------------------------------------------------------- what is built from the options

    def _scheduler(self) -> Iterator[Mistake]:
        key = ('train', 'scheduler')
        section = checked_section(SCHEDULER_REGISTRY, _at(self.all, *key))
        if section is None:
            return
        try:
            covers = build(SCHEDULER_REGISTRY, section).covers
        except Exception as error:
            yield _refusal(key, section, error)
            return
        total = _at(self.data, 'train', 'total_iter')
        if covers is not None and total is not None and covers < total:
            name = 'periods' if 'periods' in type(section).model_fields else 'total_iter'
            found = f'a sum of {covers}' if name == 'periods' else covers
            yield Mistake((*key, name), f'found {found}; allowed: at least train.total_iter, {total}')

    def _loss(self) -> Iterator[Mistake]:
        key = ('train', 'pixel_opt')
        loss, mistakes = self._module(LOSS_REGISTRY, *key)
        yield from mistakes
        if getattr(loss, 'reduction', None) == 'none':
            yield Mistake(
                (*key, 'reduction'), 'found "none"; allowed: "mean" or "sum", as training needs one number'
            )
        is_grey = 1 in (self.train_set.get('channels'), self.built_channels.get('train'))
        if getattr(loss, 'toY', False) is True and is_grey:
            yield Mistake((*key, 'toY'), 'found true; allowed: false, as datasets.train has 1 channel')

    def _network(self) -> Iterator[Mistake]:
        net, mistakes = self._module(ARCH_REGISTRY, 'network_g')
        yield from mistakes
        section = _at(self.data, 'network_g') or {}
        multiple = getattr(ARCH_REGISTRY.get(section['type']), 'multiple', 1) if 'type' in section else 1
        for key, value in self._sizes() if isinstance(multiple, int) and multiple > 0 else ():
            if value % multiple:
                yield Mistake(key, f'found {value}; allowed: a multiple of {multiple}, for {section["type"]}')
        if net is None:
            return
        names = ('window_size', 'tlc', 'tile', 'tile_overlap')
        given = _at(self.data, 'val') or {}
        val = ValOptions(**{name: given[name] for name in names if name in given})
        try:
            check_arguments(net, val.window_size, val.tlc, val.tile, val.tile_overlap)
        except ValueError as error:
            name, _, text = str(error).partition(': ')
            if name != 'multiple':  # said above, for the sides of training patches, too
                yield Mistake(('val', name), text)
        parameters = _parameters(ARCH_REGISTRY, section['type'])
        for name in {'inp_channels', 'out_channels'} & parameters.keys():
            value = section.get(name, parameters[name].default)
            for phase, dataset in self.used_sets.items():
                channels = self._channels(phase, dataset)
                if channels is not None and value != channels:
                    text = f'found {value}; allowed: {channels}, the channels of datasets.{phase}'
                    yield Mistake(('network_g', name), text)
                    break

    def _channels(self, phase: str, dataset: dict[str, Any]) -> int | None:
        """Of the images of a set of ours; None if that is not known."""
        if dataset.get('type') == 'Dataset_PairedImage':
            return dataset.get('channels', 3)
        return self.built_channels.get(phase)

    def _sizes(self) -> Iterator[tuple[Key, int]]:
        """Whatever becomes the side of an image that the network sees."""
        yield ('val', 'window_size'), _at(self.data, 'val', 'window_size') or 8
        if self.purpose == 'train':
            key = ('datasets', 'train')
            if 'gt_sizes' in self.train_set:
                yield from (((*key, 'gt_sizes', i), size) for i, size in enumerate(self.train_set['gt_sizes']))
            elif 'gt_size' in self.train_set:
                yield (*key, 'gt_size'), self.train_set['gt_size']

    def _metrics(self) -> Iterator[Mistake]:
        """Each is tried on a small image, with the channels and the type of those it will get."""
        measured = [dataset for dataset in self.test_sets.values() if dataset.get('dataroot_gt')]
        others = {self.built_channels[phase] for phase in self.test_sets if phase in self.built_channels}
        channels = sorted({dataset.get('channels', 3) for dataset in measured} | others)
        for name, section in (_at(self.data, 'val', 'metrics') or {}).items():
            key = ('val', 'metrics', name)
            metric = checked_section(METRIC_REGISTRY, _at(self.all, *key), MetricOptions)
            if metric is None:
                continue
            settings = arguments(metric, MetricOptions)
            try:
                if 'crop_border' in settings:  # how large the images will be is not known
                    settings['crop_border'] = min(settings['crop_border'], 8)
                for count in channels:
                    pair = _two_images(count, rounded=_at(self.data, 'val', 'use_image') is not False)
                    float(Metric(METRIC_REGISTRY.get(section['type']), settings)(*pair))
            except Exception as error:
                yield _refusal(key, metric, error)

    def _module(self, registry: Registry, *key: str) -> tuple[Any, list[Mistake]]:
        """Arguments that are right one by one may not fit together: the constructor has the last word."""
        section = checked_section(registry, _at(self.all, *key))
        if section is None:
            return None, []
        try:
            with torch.device('meta'):
                return build(registry, section), []
        except Exception:
            try:  # what cannot be made without storage is made with it
                return build(registry, section), []
            except Exception as error:
                return None, [_refusal(key, section, error)]


def _parameters(registry: Registry, name: str | None) -> dict[str, inspect.Parameter]:
    if name is None:
        return {}
    try:
        return dict(inspect.signature(registry.get(name)).parameters)
    except (TypeError, ValueError):
        return {}


def _refusal(key: Key, section: BaseModel, error: Exception, allowed: str = '') -> Mistake:
    """What a constructor said; ours name the parameter: `dim: found …; allowed: …`."""
    said = ' '.join(str(error).split())
    named = re.fullmatch(r'(\w+): (found .*; allowed: .*)', said)
    if named and named[1] in type(section).model_fields:
        return Mistake((*key, named[1]), named[2])
    if allowed:
        return Mistake(key, f'found a mistake in the files: {said}; allowed: {allowed}')
    found = f'found values that do not work ({type(error).__name__}: {said})'
    return Mistake(key, f'{found}; allowed: what {section.type} takes')  # type: ignore[attr-defined]


def _exists(name: str, test: Callable[[Path], bool]) -> bool:
    try:
        return test(resolve(name))
    except (OSError, RuntimeError, ValueError):  # not allowed to look, no such home folder, no possible name
        return False


def _in_repository(name: str) -> tuple[str, ...]:
    try:
        return resolve(name).relative_to(ROOT).parts
    except (RuntimeError, ValueError):  # no such home folder, or somewhere else
        return ()


def _how_to_get(name: str) -> str:
    """For folders of data that this repository knows; '' for others."""
    parts = _in_repository(name)
    pack = 'the pack that python scripts/prepare_data.py makes of ' if Path(name).suffix == '.pack' else ''
    if parts[:2] == ('datasets', 'synthetic_blur'):
        return 'the pairs that python scripts/synthesize_blur.py makes'
    known = parts[1:2] == ('Datasets',) and len(parts) > 3  # <task>/Datasets/<train, val or test>/<set>
    if known and parts[0] in {task.folder for task in TASKS.values()}:
        data = f'the {parts[3].removesuffix(".pack")} data'
        return (
            f'{pack}{data}, which python {parts[0]}/download_data.py gets, and {parts[0]}/README.md says how to '
            'prepare them'
        )
    return f'{pack}pairs of images' if pack else ''


def _two_images(channels: int, rounded: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Two images, large enough for a metric of several scales, and their range."""
    images = np.random.default_rng(0).integers(0, 256, (2, 176, 184, channels), dtype=np.uint8)
    one, other = images if rounded else images / 255
    return one, other, 255.0 if rounded else 1.0
