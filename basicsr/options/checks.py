"""Checks of an option file that take more than one key, a look at the disk, or a constructor.

Each check reports the mistakes of one concern. They run on the data with invalid keys removed, so one report lists
every mistake.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from basicsr.data.sampler import accumulation
from basicsr.inference.restorer import check_arguments
from basicsr.metrics.metric import Metric
from basicsr.options.components import AnyComponent, Component, Section, component
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

TRAIN_SET = ('datasets', 'train')
RESULT_COLUMNS = {'name', 'iter', 'kind', 'dataset'}
REFUSAL = r'(\w+): found (.*); allowed: (.*)'  # the form of ValueErrors in this project


class Draft:
    """The valid part of an option file, and the mistakes that the checks find in it.

    Args:
        written: the values of the file.
        invalid: keys that are wrong by themselves.
    """

    def __init__(self, written: dict[str, Any], invalid: set[Key], purpose: Purpose, world_size: int) -> None:
        # The keys of a dataset whose `type` is invalid are unknown.
        self.invalid = {_list_of(key) for key in invalid}
        untyped = [key[:2] for key in self.invalid if key[0] == 'datasets' and key[2:] == ('type',)]
        self.invalid |= {(*key, name) for key in untyped for name in _at(written, *key)}
        self.written, self.valid = written, copy.deepcopy(written)
        for *above, last in self.invalid:
            section = self.get(*above)
            if isinstance(section, dict):
                section.pop(last, None)
        self.purpose, self.world_size = purpose, world_size
        self.mistakes: list[Mistake] = []
        sets = self.get('datasets') or {}
        self.test_sets = [phase for phase in sets if phase != 'train']
        self.used_sets = [*sets] if purpose == 'train' else self.test_sets
        self.train_set = self.loader('train')
        self.val = ValOptions.model_construct(**self.get('val') or {})

    def report(self, key: Key, found: str, allowed: str) -> None:
        if _list_of(key) not in self.invalid:
            self.mistakes.append(Mistake(key, found, allowed))

    @contextmanager
    def refusals(self, key: Key, section: Section) -> Iterator[None]:
        """Report what a constructor raises: values that are valid one by one may not fit each other."""
        try:
            yield
        except Exception as error:
            reason = ' '.join(str(error).split())
            named = re.fullmatch(REFUSAL, reason)
            if named and named[1] in type(section).model_fields:
                self.report((*key, named[1]), named[2], named[3])
            elif isinstance(error, DataError):
                self.report(key, f'a mistake in the files: {reason}', 'pairs of images')
            else:
                found = f'values that do not work ({type(error).__name__}: {reason})'
                self.report(key, found, f'what {getattr(section, "type", "the network")} takes')

    def get(self, *key: str) -> Any:
        """The valid value of a key; None if there is none."""
        return _at(self.valid, *key)

    def loader(self, phase: str) -> LoaderOptions:
        return LoaderOptions.model_construct(**self.get('datasets', phase) or {})

    def component(self, registry: Registry, base: type[AnyComponent], *key: str) -> AnyComponent | None:
        """The validated section, without invalid keys that its constructor does not get; None if it has other
        mistakes."""
        section = _at(self.written, *key)
        if isinstance(section, dict):
            ignored = {name for name in base.model_fields if (*key, name) in self.invalid}
            section = {name: value for name, value in section.items() if name not in ignored}
        try:
            return component(registry, section, base)
        except ValueError:
            return None

    def module(self, registry: Registry, *key: str) -> Any:
        """The network or loss of a section, possibly on the meta device; None if that fails."""
        if section := self.component(registry, Component, *key):
            with self.refusals(key, section):
                try:
                    with torch.device('meta'):
                        return registry.build(section)
                except Exception:  # some constructors need real tensors
                    return registry.build(section)
        return None

    def dataset(self, phase: str) -> LoaderOptions | None:
        return self.component(DATASET_REGISTRY, LoaderOptions, 'datasets', phase)

    @cached_property
    def absent_data(self) -> dict[Key, str]:
        """Files and folders of datasets that do not exist."""
        absent: dict[Key, str] = {}
        for phase in self.used_sets:
            is_pack = self.get('datasets', phase, 'type') == 'Dataset_PackedImage'
            for name in ['dataroot'] if is_pack else ['dataroot_gt', 'dataroot_lq', 'meta_info_file']:
                path = self.get('datasets', phase, name)
                test = Path.is_file if name == 'meta_info_file' else Path.is_dir
                if isinstance(path, str) and not (path and _exists(path, test)):
                    absent['datasets', phase, name] = path
        return absent

    @cached_property
    def built_sets(self) -> dict[str, Any]:
        """The datasets of this run that exist."""
        built = {}
        for phase in self.used_sets:
            section = self.dataset(phase)
            if section and phase not in (key[1] for key in self.absent_data):
                settings = section.arguments()
                settings.pop('in_memory', None)  # images need not be decoded to be counted
                with self.refusals(('datasets', phase), section):
                    dataset = DATASET_REGISTRY.get(section.type)(**settings)
                    len(dataset)
                    built[phase] = dataset
        return built

    def channels(self, phase: str) -> int | None:
        """Channels of a dataset's images, if known."""
        option = getattr(self.dataset(phase), 'channels', None)
        known = getattr(self.built_sets.get(phase), 'channels', option)
        return known if isinstance(known, int) else None

    def micro_batches(self) -> int:
        """Micro-batches of a step, of all processes. Raises ValueError."""
        num_gpu = 1 if self.get('num_gpu') is None else self.get('num_gpu')
        accumulate = self.get('train', 'accumulate') or 1
        return self.world_size * accumulation(accumulate, num_gpu, self.world_size)


# ------------------------------------------------------------------ required sections and names


def check_required(draft: Draft) -> None:
    sets = draft.get('datasets')
    if draft.purpose == 'test':
        if sets is not None and not draft.test_sets:
            draft.report(('datasets',), 'no set to test on', 'one of any name but train')
        if not draft.get('path', 'pretrain_network_g'):
            draft.report(('path', 'pretrain_network_g'), 'nothing', 'the file of the weights to test')
        return
    if draft.get('train') is None:
        draft.report(('train',), 'nothing', 'the options of training: total_iter, optim_g, scheduler, …')
    if sets is not None and 'train' not in sets:
        draft.report(TRAIN_SET, f'only {", ".join(sets)}' if sets else 'nothing', 'a training set')
    elif sets is not None:
        needed = {name: getattr(draft.train_set, name) for name in ('gt_size', 'batch_size_per_gpu')}
        needed['dataroot_gt'] = getattr(draft.dataset('train'), 'dataroot_gt', 'no such key')
        for name in (name for name, value in needed.items() if value is None):
            draft.report((*TRAIN_SET, name), 'nothing', 'a value, to train')


def check_names(draft: Draft) -> None:
    users: dict[str, str] = {}
    folders: dict[Key, str] = {('name',): draft.get('name') or 'a'}
    for phase in draft.test_sets:
        own = draft.loader(phase).name
        name = phase if own is None else own
        key: Key = ('datasets', phase) if own is None else ('datasets', phase, 'name')
        folders[key] = name
        if users.setdefault(name, phase) != phase:
            draft.report(key, f'{show(name)}, as the name of datasets.{users[name]}', 'a name of its own')
    for key, name in folders.items():
        if not re.match(FOLDER_NAME, name) or len(name.encode()) > 200:
            draft.report(key, show(name), 'the name of a folder, at most 200 bytes, without slashes')
    for name in RESULT_COLUMNS & draft.val.metrics.keys():
        allowed = 'another name, as results have a column of this'
        draft.report(('val', 'metrics', name), f'a metric called {show(name)}', allowed)


# ------------------------------------------------------------------ files and folders


def check_weights(draft: Draft) -> None:
    for name in ('pretrain_network_g', 'resume_state') if draft.purpose == 'train' else ('pretrain_network_g',):
        file = draft.get('path', name)
        if file and not _exists(file, Path.is_file):
            allowed = 'a file' if draft.purpose == 'test' else 'a file, or ~ for none'
            for task in TASKS.values():
                if _in_repository(file) == (task.folder, 'pretrained_models', task.published):
                    allowed += f'; python {task.folder}/download_data.py --data weights gets the published one'
            draft.report(('path', name), f'{show(file)}, where there is no file', allowed)


def check_data(draft: Draft) -> None:
    """One sentence for all that one command gets: a newcomer has none of it."""
    groups: dict[str, list[Key]] = {}
    for key, path in draft.absent_data.items():
        groups.setdefault(_how_to_get(path) or path, []).append(key)
    for key, *others in groups.values():
        path = draft.absent_data[key]
        kind = 'file' if key[-1] == 'meta_info_file' else 'folder'
        also = f' (as for {", ".join(map(dotted, others))})' if others else ''
        allowed = _how_to_get(path) or 'one that is there'
        if 'README' in allowed and draft.purpose == 'train':
            allowed += '; to try training without them, run python scripts/synthesize_blur.py, then python '
            allowed += 'basicsr/train.py -opt options/Deblurring_Restormer_quickstart.yml'
        draft.report(key, f'{show(path)}, where there is no {kind}{also}', allowed)


def _exists(name: str, test: Callable[[Path], bool]) -> bool:
    try:
        return test(resolve(name))
    except (OSError, RuntimeError, ValueError):  # no permission, an unknown home folder, an impossible name
        return False


def _in_repository(name: str) -> tuple[str, ...]:
    try:
        return resolve(name).relative_to(ROOT).parts
    except (RuntimeError, ValueError):  # an unknown home folder, or outside
        return ()


def _how_to_get(name: str) -> str:
    """The contents of a known folder of data, and the command that gets it; '' for other folders."""
    pack = 'the pack that python scripts/prepare_data.py makes of ' if Path(name).suffix == '.pack' else ''
    match _in_repository(name):
        case ('datasets', 'synthetic_blur', *_):
            return 'the pairs that python scripts/synthesize_blur.py makes'
        case (folder, 'Datasets', _, dataset, *_) if folder in [task.folder for task in TASKS.values()]:
            data = f'the {dataset.removesuffix(".pack")} data, which python {folder}/download_data.py gets'
            return f'{pack}{data}, and {folder}/README.md says how to prepare them'
    return f'{pack}pairs of images' if pack else ''


# ------------------------------------------------------------------ training set and step


def check_samples(draft: Draft) -> None:
    """Datasets can be built, and the training set has at least one batch."""
    built, loader = draft.built_sets, draft.train_set
    if 'train' not in built or (*TRAIN_SET, 'dataset_enlarge_ratio') in draft.invalid:
        return
    try:
        count = draft.micro_batches()
    except ValueError:  # reported by `check_step`
        return
    samples = len(built['train']) * loader.dataset_enlarge_ratio
    size = max(loader.batch_size_per_gpu or 1, *(loader.mini_batch_sizes or [1]))
    if draft.purpose == 'train' and samples < size * count:
        made_of = f' ({count} micro-batches of {size})' if count > 1 else ''
        allowed = f'at least one batch, {size * count}{made_of}'
        how = 'lower batch_size_per_gpu and mini_batch_sizes, or raise dataset_enlarge_ratio'
        draft.report(TRAIN_SET, f'a set of {samples} sample{"s" * (samples != 1)}', f'{allowed}; {how}')


def check_stages(draft: Draft) -> None:
    loader, total = draft.train_set, draft.get('train', 'total_iter')
    for names, limit_name in (('gt_sizes', 'gt_size'), ('mini_batch_sizes', 'batch_size_per_gpu')):
        limit = getattr(loader, limit_name)
        for index, value in enumerate(getattr(loader, names) or ()):
            if limit is not None and value > limit:
                draft.report((*TRAIN_SET, names, index), str(value), f'at most {limit_name}, {limit}')
    lists = {name: getattr(loader, name) for name in ('mini_batch_sizes', 'gt_sizes', 'iters')}
    given = {name: len(values) for name, values in lists.items() if values is not None}
    for name in lists if given else ():
        if name not in given:
            draft.report((*TRAIN_SET, name), 'nothing', f'a list, as there is {" and ".join(given)}')
        elif not given[name]:
            draft.report((*TRAIN_SET, name), 'no stage', 'one or more')
    if len(set(given.values())) > 1:
        often = Counter(given.values())
        odd = min(given, key=lambda name: often[given[name]])
        found = ', '.join(f'{length} in {name}' for name, length in given.items())
        draft.report((*TRAIN_SET, odd), f'stages of different number, {found}', 'lists of the same length')
    if total is not None and loader.iters and sum(loader.iters) < total:
        allowed = f'at least train.total_iter, {total}'
        draft.report((*TRAIN_SET, 'iters'), f'a sum of {sum(loader.iters)}', allowed)


def check_step(draft: Draft) -> None:
    try:
        draft.micro_batches()
    except ValueError as error:
        found, _, allowed = str(error).removeprefix('found ').partition('; allowed: ')
        draft.report(('num_gpu',), found, allowed)
    key = ('train', 'activation_checkpointing')
    asked, name = draft.get(*key), draft.get('network_g', 'type')
    stages = 1 if draft.train_set.iters is None else len(draft.train_set.iters)
    if isinstance(asked, list) and len(asked) != stages:
        allowed = f'true, false, or a list with one for each stage, {stages}'
        draft.report(key, f'{len(asked)} items', allowed)
    if asked and name and not hasattr(ARCH_REGISTRY.get(name), 'checkpointing'):
        draft.report(key, show(asked), f'false, as {name} has no attribute `checkpointing`')


def check_precision(draft: Draft) -> None:
    for section, others in (('train', 'fp32, bf16, fp64'), ('val', 'fp32, bf16')):
        if draft.get(section, 'precision') == 'fp16' and draft.get('num_gpu') == 0:
            draft.report((section, 'precision'), '"fp16" on the CPU, where it is neither fast nor safe', others)


# ------------------------------------------------------------------ components


def check_scheduler(draft: Draft) -> None:
    key = ('train', 'scheduler')
    if section := draft.component(SCHEDULER_REGISTRY, Component, *key):
        total = draft.get('train', 'total_iter')
        with draft.refusals(key, section):
            covers = SCHEDULER_REGISTRY.build(section).covers
            if covers is not None and total is not None and covers < total:
                name = 'periods' if 'periods' in type(section).model_fields else 'total_iter'
                found = f'a sum of {covers}' if name == 'periods' else str(covers)
                draft.report((*key, name), found, f'at least train.total_iter, {total}')


def check_losses(draft: Draft) -> None:
    train = _at(draft.written, 'train')
    terms: list[tuple[str, ...]] = [('train', 'losses', name) for name in draft.get('train', 'losses') or ()]
    if _at(train, 'pixel_opt') is not None:
        terms.append(('train', 'pixel_opt'))
    elif isinstance(train, dict) and not train.get('losses'):
        draft.report(('train', 'pixel_opt'), 'nothing', 'a loss, here or in train.losses')
    for key in terms:
        if key[1:] == ('losses', 'pixel_opt'):
            draft.report(key, 'a loss called "pixel_opt"', 'another name than that of train.pixel_opt')
        loss = draft.module(LOSS_REGISTRY, *key)
        if getattr(loss, 'reduction', None) == 'none':
            draft.report((*key, 'reduction'), '"none"', '"mean" or "sum", as training needs one number')
        if getattr(loss, 'toY', False) is True and draft.channels('train') == 1:
            draft.report((*key, 'toY'), 'true', 'false, as datasets.train has 1 channel')


def check_network(draft: Draft) -> None:
    net, val = draft.module(ARCH_REGISTRY, 'network_g'), draft.val
    if net is not None and not val.window_size % _multiple(type(net)):
        with draft.refusals(('val',), val):
            check_arguments(net, val.window_size, val.tlc, val.tile, val.tile_overlap)
    section = draft.component(ARCH_REGISTRY, Component, 'network_g') if net is not None else None
    for name in ('inp_channels', 'out_channels'):
        value = getattr(section, name, None)
        others = {phase: draft.channels(phase) for phase in draft.used_sets if value is not None}
        others = {phase: channels for phase, channels in others.items() if channels not in (None, value)}
        for phase, channels in [*others.items()][:1]:
            draft.report(('network_g', name), str(value), f'{channels}, the channels of datasets.{phase}')


def check_sizes(draft: Draft) -> None:
    """The sides of all images are multiples of what the network takes."""
    name, loader = draft.get('network_g', 'type'), draft.train_set
    sizes: dict[Key, int | None] = {('val', 'window_size'): draft.val.window_size}
    if draft.purpose == 'train' and loader.gt_sizes is None:
        sizes |= {(*TRAIN_SET, 'gt_size'): loader.gt_size}
    elif draft.purpose == 'train':
        sizes |= {(*TRAIN_SET, 'gt_sizes', index): size for index, size in enumerate(loader.gt_sizes or ())}
    multiple = _multiple(ARCH_REGISTRY.get(name)) if name else 1
    for key, value in sizes.items():
        if value is not None and value % multiple:
            draft.report(key, str(value), f'a multiple of {multiple}, for {name}')


def _multiple(network: object) -> int:
    multiple = getattr(network, 'multiple', 1)
    return multiple if isinstance(multiple, int) and multiple > 0 else 1


def check_metrics(draft: Draft) -> None:
    """Metrics work on small images with the channels and the type of those that they will get."""
    roots = {phase: getattr(draft.dataset(phase), 'dataroot_gt', 'no such key') for phase in draft.test_sets}
    channels = {draft.channels(phase) for phase, root in roots.items() if root is not None}
    for name in draft.val.metrics:
        key = ('val', 'metrics', name)
        if section := draft.component(METRIC_REGISTRY, MetricOptions, *key):
            with draft.refusals(key, section):
                settings = section.arguments()
                if 'crop_border' in settings:  # the size of the images is unknown
                    settings['crop_border'] = min(settings['crop_border'], 8)
                metric = Metric(METRIC_REGISTRY.get(section.type), settings)
                for count in sorted(filter(None, channels)):
                    metric(*_two_images(count, rounded=draft.val.use_image))


def _two_images(channels: int, rounded: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Two images, large enough for a metric of several scales, and their range."""
    images = np.random.default_rng(0).integers(0, 256, (2, 176, 184, channels), dtype=np.uint8)
    one, other = images if rounded else images / 255
    return one, other, 255.0 if rounded else 1.0


def find_mistakes(
    written: dict[str, Any], invalid: set[Key], purpose: Purpose, world_size: int
) -> list[Mistake]:
    """The mistakes in a file for a run of `world_size` processes, besides its keys that are `invalid` by themselves."""
    draft = Draft(written, invalid, purpose, world_size)
    checks = [check_stages, check_step, check_scheduler, check_losses] if purpose == 'train' else []
    checks += [check_required, check_names, check_weights, check_data, check_samples]
    for check in [*checks, check_sizes, check_network, check_metrics, check_precision]:
        check(draft)
    return draft.mistakes


# ------------------------------------------------------------------ plain data


def _at(data: Any, *key: str) -> Any:
    for name in key:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _list_of(key: Key) -> tuple[str, ...]:
    """One invalid item invalidates the whole list."""
    return tuple(takewhile(lambda step: isinstance(step, str), key))  # type: ignore[arg-type]
