"""Checks of an option file that take more than one key, a look at the disk, or a constructor.

Each check yields the mistakes that concern it. They run on the data with invalid keys removed, so one report lists
every mistake.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from basicsr.data.sampler import accumulation
from basicsr.inference.restorer import check_arguments
from basicsr.metrics.metric import Metric
from basicsr.options.components import AnyComponent, Component, component
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
TRAIN_SET = ('datasets', 'train')
RESULT_COLUMNS = {'name', 'iter', 'kind', 'dataset'}


class Draft:
    """The valid part of an option file, which may have mistakes elsewhere.

    Args:
        data: the values as written.
        invalid: keys that are wrong by themselves.
    """

    def __init__(self, data: dict[str, Any], invalid: set[Key], purpose: Purpose, world_size: int) -> None:
        # The keys of a dataset whose `type` is invalid are unknown.
        invalid = invalid | {key[:2] for key in invalid if key[0] == 'datasets' and key[2:] == ('type',)}
        self.invalid = {_list_of(key) for key in invalid}
        self.written, self.valid = data, _without(data, self.invalid)
        self.purpose, self.world_size = purpose, world_size
        sets = self.get('datasets') or {}
        self.test_sets = [phase for phase in sets if phase != 'train']
        self.used_sets = [*sets] if purpose == 'train' else self.test_sets
        self.train_set = self.loader('train')
        self.val = ValOptions.model_construct(**self.get('val') or {})

    def get(self, *key: str) -> Any:
        """The valid value of a key; None if there is none."""
        return _at(self.valid, *key)

    def loader(self, phase: str) -> LoaderOptions:
        return LoaderOptions.model_construct(**self.get('datasets', phase) or {})

    def component(self, registry: Registry, base: type[AnyComponent], *key: str) -> AnyComponent | None:
        """The section as in checked options, less invalid keys that its constructor does not get; None if it has
        other mistakes."""
        section = _at(self.written, *key)
        if isinstance(section, dict):
            ignored = {name for name in base.model_fields if (*key, name) in self.invalid}
            section = {name: value for name, value in section.items() if name not in ignored}
        try:
            return component(registry, section, base)
        except ValueError:
            return None

    def dataset(self, phase: str) -> LoaderOptions | None:
        return self.component(DATASET_REGISTRY, LoaderOptions, 'datasets', phase)

    @cached_property
    def built_sets(self) -> dict[str, Any]:
        """The datasets of this run, where their folders exist; a Mistake for one that cannot be built."""
        built = {}
        absent = {key[1] for key, _ in _absent_data(self)}
        for phase in self.used_sets:
            section = self.dataset(phase)
            if section is None or phase in absent:
                continue
            settings = section.arguments()
            settings.pop('in_memory', None)  # images need not be decoded to be counted
            try:
                built[phase] = DATASET_REGISTRY.get(section.type)(**settings)
                len(built[phase])
            except Exception as error:
                built[phase] = _refusal(('datasets', phase), section, error)
        return built

    def channels(self, phase: str) -> int | None:
        """Channels of a dataset's images, if known."""
        known = getattr(self.dataset(phase), 'channels', None)  # an option, known without the files
        known = getattr(self.built_sets.get(phase), 'channels', known)
        return known if isinstance(known, int) else None

    def module(self, registry: Registry, *key: str) -> Any:
        """The network or loss of a section; None if the section has mistakes. What the constructor refuses, as values
        that are valid one by one may not fit each other, is a Mistake."""
        section = self.component(registry, Component, *key)
        if section is None:
            return None
        try:
            with torch.device('meta'):
                return registry.build(section)
        except Exception:
            try:  # off the meta device: some constructors need real tensors
                return registry.build(section)
            except Exception as error:
                return _refusal(key, section, error)

    def micro_batches(self) -> int:
        """Micro-batches of a step, of all processes. Raises ValueError."""
        accumulate, num_gpu = self.get('train', 'accumulate') or 1, self.get('num_gpu')
        num_gpu = 1 if num_gpu is None else num_gpu
        return self.world_size * accumulation(accumulate, num_gpu, self.world_size)


def find_mistakes(
    data: dict[str, Any], invalid: set[Key], purpose: Purpose, world_size: int
) -> Iterator[Mistake]:
    draft = Draft(data, invalid, purpose, world_size)
    for check in (TRAINING_CHECKS if purpose == 'train' else TEST_CHECKS) + CHECKS:
        yield from (mistake for mistake in check(draft) if _list_of(mistake.key) not in draft.invalid)


# ------------------------------------------------------------------ required sections and names


def check_tested(draft: Draft) -> Iterator[Mistake]:
    if draft.get('datasets') is not None and not draft.test_sets:
        yield Mistake(('datasets',), 'found no set to test on; allowed: one of any name but train')
    if not draft.get('path', 'pretrain_network_g'):
        yield Mistake(('path', 'pretrain_network_g'), 'found nothing; allowed: the file of the weights to test')


def check_trained(draft: Draft) -> Iterator[Mistake]:
    if draft.get('train') is None:
        allowed = 'the options of training: total_iter, optim_g, scheduler, …'
        yield Mistake(('train',), f'found nothing; allowed: {allowed}')
    sets = draft.get('datasets')
    if sets is not None and 'train' not in sets:
        found = f'only {", ".join(sets)}' if sets else 'nothing'
        yield Mistake(TRAIN_SET, f'found {found}; allowed: a training set')
    elif sets is not None:
        needed = {name: getattr(draft.train_set, name) for name in ('gt_size', 'batch_size_per_gpu')}
        needed['dataroot_gt'] = getattr(draft.dataset('train'), 'dataroot_gt', 'no such key')
        for name in (name for name, value in needed.items() if value is None):
            yield Mistake((*TRAIN_SET, name), 'found nothing; allowed: a value, to train')


def check_names(draft: Draft) -> Iterator[Mistake]:
    users: dict[str, str] = {}
    folders: dict[Key, str] = {('name',): draft.get('name') or 'a'}
    for phase in draft.test_sets:
        own = draft.loader(phase).name
        name = phase if own is None else own
        key: Key = ('datasets', phase) if own is None else ('datasets', phase, 'name')
        folders[key] = name
        if name in users:
            found = f'{show(name)}, as the name of datasets.{users[name]}'
            yield Mistake(key, f'found {found}; allowed: a name of its own')
        users.setdefault(name, phase)
    for key, name in folders.items():
        if not re.match(FOLDER_NAME, name) or len(name.encode()) > 200:
            allowed = 'the name of a folder, at most 200 bytes, without slashes'
            yield Mistake(key, f'found {show(name)}; allowed: {allowed}')
    for name in RESULT_COLUMNS & draft.val.metrics.keys():
        allowed = 'another name, as results have a column of this'
        yield Mistake(('val', 'metrics', name), f'found a metric called {show(name)}; allowed: {allowed}')


# ------------------------------------------------------------------ files and folders


def check_weights(draft: Draft) -> Iterator[Mistake]:
    for name in ('pretrain_network_g', 'resume_state')[: 2 if draft.purpose == 'train' else 1]:
        file = draft.get('path', name)
        if file and not _exists(file, Path.is_file):
            allowed = 'a file' if draft.purpose == 'test' else 'a file, or ~ for none'
            for task in TASKS.values():
                if _in_repository(file) == (task.folder, 'pretrained_models', task.published):
                    allowed += f'; python {task.folder}/download_data.py --data weights gets the published one'
            yield Mistake(('path', name), f'found {show(file)}, where there is no file; allowed: {allowed}')


def check_data(draft: Draft) -> Iterator[Mistake]:
    """One sentence for everything that one command gets: a newcomer has none of it."""
    groups: dict[str, list[tuple[Key, str]]] = {}
    for key, name in _absent_data(draft):
        groups.setdefault(_how_to_get(name) or name, []).append((key, name))
    for (key, name), *others in groups.values():
        kind = 'file' if key[-1] == 'meta_info_file' else 'folder'
        also = f' (as for {", ".join(dotted(other) for other, _ in others)})' if others else ''
        allowed = _how_to_get(name) or 'one that is there'
        if 'README' in allowed and draft.purpose == 'train':
            allowed += f'; to try training without them, run {QUICKSTART}'
        yield Mistake(key, f'found {show(name)}, where there is no {kind}{also}; allowed: {allowed}')


def _absent_data(draft: Draft) -> Iterator[tuple[Key, str]]:
    for phase in draft.used_sets:
        is_pack = draft.get('datasets', phase, 'type') == 'Dataset_PackedImage'
        for name in ['dataroot'] if is_pack else ['dataroot_gt', 'dataroot_lq', 'meta_info_file']:
            path = draft.get('datasets', phase, name)
            test = Path.is_file if name == 'meta_info_file' else Path.is_dir
            if isinstance(path, str) and not (path and _exists(path, test)):
                yield ('datasets', phase, name), path


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
    """What a known folder of data contains and which command gets it; '' for other folders."""
    parts = _in_repository(name)
    pack = 'the pack that python scripts/prepare_data.py makes of ' if Path(name).suffix == '.pack' else ''
    if parts[:2] == ('datasets', 'synthetic_blur'):
        return 'the pairs that python scripts/synthesize_blur.py makes'
    # <task>/Datasets/<train, val or test>/<set>
    if parts[1:2] == ('Datasets',) and len(parts) > 3 and parts[0] in {task.folder for task in TASKS.values()}:
        return (
            f'{pack}the {parts[3].removesuffix(".pack")} data, which python {parts[0]}/download_data.py gets, and '
            f'{parts[0]}/README.md says how to prepare them'
        )
    return f'{pack}pairs of images' if pack else ''


# ------------------------------------------------------------------ training set and step


def check_datasets(draft: Draft) -> Iterator[Mistake]:
    yield from (built for built in draft.built_sets.values() if isinstance(built, Mistake))


def check_number_of_samples(draft: Draft) -> Iterator[Mistake]:
    built, loader = draft.built_sets.get('train'), draft.train_set
    if built is None or isinstance(built, Mistake) or (*TRAIN_SET, 'dataset_enlarge_ratio') in draft.invalid:
        return
    try:
        count = draft.micro_batches()
    except ValueError:  # reported by `check_step`
        return
    samples = len(built) * loader.dataset_enlarge_ratio
    size = max(loader.batch_size_per_gpu or 1, *(loader.mini_batch_sizes or [1]))
    if samples < size * count:
        made_of = f' ({count} micro-batches of {size})' if count > 1 else ''
        yield Mistake(
            TRAIN_SET,
            f'found a set of {samples} sample{"s" * (samples != 1)}; allowed: at least one batch, {size * count}'
            f'{made_of}; lower batch_size_per_gpu and mini_batch_sizes, or raise dataset_enlarge_ratio',
        )


def check_stages(draft: Draft) -> Iterator[Mistake]:
    loader = draft.train_set
    for names, limit_name in (('gt_sizes', 'gt_size'), ('mini_batch_sizes', 'batch_size_per_gpu')):
        limit = getattr(loader, limit_name)
        for index, value in enumerate(getattr(loader, names) or ()):
            if limit is not None and value > limit:
                key = (*TRAIN_SET, names, index)
                yield Mistake(key, f'found {value}; allowed: at most {limit_name}, {limit}')
    lists = {name: getattr(loader, name) for name in ('mini_batch_sizes', 'gt_sizes', 'iters')}
    given = {name: len(values) for name, values in lists.items() if values is not None}
    for name in lists if given else ():
        if name not in given:
            there = f'a list, as there is {" and ".join(given)}'
            yield Mistake((*TRAIN_SET, name), f'found nothing; allowed: {there}')
        elif not given[name]:
            yield Mistake((*TRAIN_SET, name), 'found no stage; allowed: one or more')
    if len(set(given.values())) > 1:
        often = Counter(given.values())
        odd = min(given, key=lambda name: often[given[name]])
        found = ', '.join(f'{length} in {name}' for name, length in given.items())
        text = f'found stages of different number, {found}; allowed: lists of the same length'
        yield Mistake((*TRAIN_SET, odd), text)
    total = draft.get('train', 'total_iter')
    if total is not None and loader.iters and sum(loader.iters) < total:
        text = f'found a sum of {sum(loader.iters)}; allowed: at least train.total_iter, {total}'
        yield Mistake((*TRAIN_SET, 'iters'), text)


def check_step(draft: Draft) -> Iterator[Mistake]:
    try:
        draft.micro_batches()
    except ValueError as error:
        yield Mistake(('num_gpu',), str(error))
    key = ('train', 'activation_checkpointing')
    asked = draft.get(*key)
    stages = 1 if draft.train_set.iters is None else len(draft.train_set.iters)
    if isinstance(asked, list) and len(asked) != stages:
        allowed = f'true, false, or a list with one for each stage, {stages}'
        yield Mistake(key, f'found {len(asked)} items; allowed: {allowed}')
    name = draft.get('network_g', 'type')
    if asked and name and not hasattr(ARCH_REGISTRY.get(name), 'checkpointing'):
        allowed = f'false, as {name} has no attribute `checkpointing`'
        yield Mistake(key, f'found {show(asked)}; allowed: {allowed}')


def check_precision(draft: Draft) -> Iterator[Mistake]:
    for section, others in (('train', 'fp32, bf16, fp64'), ('val', 'fp32, bf16')):
        if draft.get(section, 'precision') == 'fp16' and draft.get('num_gpu') == 0:
            text = f'found "fp16" on the CPU, where it is neither fast nor safe; allowed: {others}'
            yield Mistake((section, 'precision'), text)


# ------------------------------------------------------------------ components


def check_scheduler(draft: Draft) -> Iterator[Mistake]:
    key = ('train', 'scheduler')
    section = draft.component(SCHEDULER_REGISTRY, Component, *key)
    if section is None:
        return
    try:
        covers = SCHEDULER_REGISTRY.build(section).covers
    except Exception as error:
        yield _refusal(key, section, error)
        return
    total = draft.get('train', 'total_iter')
    if covers is not None and total is not None and covers < total:
        name = 'periods' if 'periods' in type(section).model_fields else 'total_iter'
        found = f'a sum of {covers}' if name == 'periods' else covers
        yield Mistake((*key, name), f'found {found}; allowed: at least train.total_iter, {total}')


def check_losses(draft: Draft) -> Iterator[Mistake]:
    train = _at(draft.written, 'train')
    terms: list[tuple[str, ...]] = [('train', 'losses', name) for name in _at(train, 'losses') or ()]
    if _at(train, 'pixel_opt') is not None:
        terms.insert(0, ('train', 'pixel_opt'))
    if isinstance(train, dict) and not terms:
        yield Mistake(('train', 'pixel_opt'), 'found nothing; allowed: a loss, here or in train.losses')
    for key in terms:
        loss = draft.module(LOSS_REGISTRY, *key)
        if isinstance(loss, Mistake):
            yield loss
        if getattr(loss, 'reduction', None) == 'none':
            allowed = '"mean" or "sum", as training needs one number'
            yield Mistake((*key, 'reduction'), f'found "none"; allowed: {allowed}')
        if getattr(loss, 'toY', False) is True and draft.channels('train') == 1:
            yield Mistake((*key, 'toY'), 'found true; allowed: false, as datasets.train has 1 channel')


def check_sizes(draft: Draft) -> Iterator[Mistake]:
    """The sides of the images that the network sees."""
    name = draft.get('network_g', 'type')
    multiple = getattr(ARCH_REGISTRY.get(name), 'multiple', 1) if name else 1
    sizes: dict[Key, int | None] = {('val', 'window_size'): draft.val.window_size}
    if draft.purpose == 'train':
        loader = draft.train_set
        sizes.update(((*TRAIN_SET, 'gt_sizes', n), size) for n, size in enumerate(loader.gt_sizes or ()))
        if loader.gt_sizes is None:
            sizes |= {(*TRAIN_SET, 'gt_size'): loader.gt_size}
    for key, value in sizes.items() if isinstance(multiple, int) and multiple > 0 else ():
        if value is not None and value % multiple:
            yield Mistake(key, f'found {value}; allowed: a multiple of {multiple}, for {name}')


def check_network(draft: Draft) -> Iterator[Mistake]:
    net, section = (
        draft.module(ARCH_REGISTRY, 'network_g'),
        draft.component(ARCH_REGISTRY, Component, 'network_g'),
    )
    if net is None or isinstance(net, Mistake):
        yield from [net] if net else []
        return
    val = draft.val
    try:
        check_arguments(type(net), val.window_size, val.tlc, val.tile, val.tile_overlap)
    except ValueError as error:
        name, _, text = str(error).partition(': ')
        if name != 'multiple':  # reported by `check_sizes`
            yield Mistake(('val', name), text)
    for name in ('inp_channels', 'out_channels'):
        found = getattr(section, name, None)
        for phase in draft.used_sets if found is not None else ():
            channels = draft.channels(phase)
            if channels not in (None, found):
                text = f'found {found}; allowed: {channels}, the channels of datasets.{phase}'
                yield Mistake(('network_g', name), text)
                break


def check_metrics(draft: Draft) -> Iterator[Mistake]:
    """Each is tried on small images, with the channels and the type of those that it will get."""
    measured = [
        phase
        for phase in draft.test_sets
        if getattr(draft.dataset(phase), 'dataroot_gt', 'no such key') is not None
    ]
    channels = {draft.channels(phase) for phase in measured} - {None}
    for name in draft.val.metrics:
        key = ('val', 'metrics', name)
        section = draft.component(METRIC_REGISTRY, MetricOptions, *key)
        if section is None:
            continue
        settings = section.arguments()
        try:
            if 'crop_border' in settings:  # the size of the images is unknown
                settings['crop_border'] = min(settings['crop_border'], 8)
            metric = Metric(METRIC_REGISTRY.get(section.type), settings)
            for count in sorted(filter(None, channels)):
                metric(*_two_images(count, rounded=draft.val.use_image))
        except Exception as error:
            yield _refusal(key, section, error)


def _two_images(channels: int, rounded: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Two images, large enough for a metric of several scales, and their range."""
    images = np.random.default_rng(0).integers(0, 256, (2, 176, 184, channels), dtype=np.uint8)
    one, other = images if rounded else images / 255
    return one, other, 255.0 if rounded else 1.0


TRAINING_CHECKS: tuple[Callable[[Draft], Iterator[Mistake]], ...] = (
    check_trained,
    check_number_of_samples,
    check_stages,
    check_step,
    check_scheduler,
    check_losses,
)
TEST_CHECKS = (check_tested,)
CHECKS = (
    check_names,
    check_weights,
    check_data,
    check_datasets,
    check_sizes,
    check_network,
    check_metrics,
    check_precision,
)


def _refusal(key: Key, section: Component, error: Exception) -> Mistake:
    """What a constructor refuses; ours name the parameter: `dim: found …; allowed: …`."""
    reason = ' '.join(str(error).split())
    named = re.fullmatch(r'(\w+): (found .*; allowed: .*)', reason)
    if named and named[1] in type(section).model_fields:
        return Mistake((*key, named[1]), named[2])
    if isinstance(error, DataError):
        return Mistake(key, f'found a mistake in the files: {reason}; allowed: pairs of images')
    found = f'found values that do not work ({type(error).__name__}: {reason})'
    return Mistake(key, f'{found}; allowed: what {section.type} takes')


# ------------------------------------------------------------------ plain data


def _at(data: Any, *key: str) -> Any:
    for name in key:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _list_of(key: Key) -> Key:
    """One invalid item invalidates the whole list."""
    return tuple(takewhile(lambda step: isinstance(step, str), key))


def _without(data: Any, invalid: set[Key], key: Key = ()) -> Any:
    """The data without invalid keys and nulls."""
    if not isinstance(data, dict):
        return data
    left = {name: _without(value, invalid, (*key, name)) for name, value in data.items()}
    return {name: value for name, value in left.items() if value is not None and (*key, name) not in invalid}
