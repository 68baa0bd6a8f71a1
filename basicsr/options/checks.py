"""Checks of an option file that take more than one key, a look at the disk, or a constructor.

Each check reports the mistakes of one concern.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from basicsr.data.sampler import accumulation
from basicsr.inference.restorer import check_arguments
from basicsr.metrics.metric import Metric
from basicsr.options.option_file import Key, Mistake, dotted
from basicsr.options.sections import (
    FOLDER_NAMES,
    LoaderOptions,
    MetricOptions,
    RunOptions,
    TrainOptions,
    is_folder_name,
    without_effect,
)
from basicsr.tasks import TASKS, how_to_get
from basicsr.utils.component import Component, Section
from basicsr.utils.errors import DataError
from basicsr.utils.files import ROOT, resolve, unset_variable
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
# Keys of datasets that are folders.
FOLDERS = ('dataroot_gt', 'dataroot_lq', 'dataroot_lqL', 'dataroot_lqR')
RESULT_COLUMNS = {'name', 'iter', 'kind', 'dataset'}
REFUSAL = r'(?:(\w+): )?found (.*); allowed: (.*)'  # the form of ValueErrors in this project


class Run:
    """The options of a run of `world_size` processes, and the mistakes that the checks find in them.

    Args:
        left_out: keys that failed their own check and are not in `options`. Mistakes that may follow from them are not
            reported.
    """

    def __init__(self, options: RunOptions, left_out: set[Key], purpose: Purpose, world_size: int) -> None:
        self.options, self.left_out, self.world_size = options, left_out, world_size
        self.is_training = purpose == 'train'
        self.test_sets = {phase: section for phase, section in options.datasets.items() if phase != 'train'}
        self.used_sets = options.datasets if self.is_training else self.test_sets
        self.mistakes: list[Mistake] = []

    def report(self, key: Key, found: str, allowed: str) -> None:
        if not any(key[: len(known)] == known for known in self.left_out):
            self.mistakes.append(Mistake(key, found, allowed))

    def is_cut(self, *section: str) -> bool:
        """Whether a key or parts of a section were left out."""
        return any(key[: len(section)] == section for key in self.left_out)

    def attempt(self, key: Key, section: Section, action: Callable[[], Any]) -> Any:
        """Return the result of an action; None where it fails. Values that are valid one by one may not fit each
        other."""
        try:
            return action()
        except Exception as error:
            reason = ' '.join(str(error).split())
            named = re.fullmatch(REFUSAL, reason)
            parameters = getattr(section, 'parameters', type(section).model_fields)
            if any((*key, name) in self.left_out for name in parameters):
                return None  # the default of an invalid key may be the reason
            if named and (named[1] is None or named[1] in type(section).model_fields):
                self.report((*key, named[1]) if named[1] else key, named[2], named[3])
            elif isinstance(error, DataError):
                self.report(key, f'a mistake in the files: {reason}', 'images that can be used')
            else:
                found = f'values that do not work ({type(error).__name__}: {reason})'
                self.report(key, found, f'values that {getattr(section, "type", "the network")} accepts')
            return None

    def module(self, registry: Registry, section: Component, key: Key) -> nn.Module | None:
        """The network or loss of a section, on the meta device if that is possible."""

        def build() -> nn.Module:
            try:
                with torch.device('meta'):
                    return registry.build(section)
            except Exception:  # some constructors need real tensors
                return registry.build(section)

        return self.attempt(key, section, build)

    @cached_property
    def absent_data(self) -> dict[Key, str]:
        """Files and folders of datasets that do not exist."""
        absent: dict[Key, str] = {}
        for phase, section in self.used_sets.items():
            is_pack = section.type == 'Dataset_PackedImage'
            for name in ['dataroot'] if is_pack else [*FOLDERS, 'meta_info_file']:
                if name in without_effect(section):
                    continue
                path = getattr(section, name, None)
                test = Path.is_file if name == 'meta_info_file' else Path.is_dir
                if isinstance(path, str) and not (path and _exists(path, test)):
                    absent['datasets', phase, name] = path
        return absent

    @cached_property
    def built_sets(self) -> dict[str, Any]:
        """The datasets of this run that exist."""

        def build(section: LoaderOptions) -> Any:
            settings = section.arguments()
            settings.pop('in_memory', None)  # images need not be decoded to be counted
            dataset = DATASET_REGISTRY.get(section.type)(**settings)
            len(dataset)
            return dataset

        without_files = {phase for _, phase, _ in self.absent_data}
        sections = {phase: section for phase, section in self.used_sets.items() if phase not in without_files}
        built = {
            phase: self.attempt(('datasets', phase), section, partial(build, section))
            for phase, section in sections.items()
        }
        return {phase: dataset for phase, dataset in built.items() if dataset is not None}

    def channels(self, phase: str, kind: Literal['lq', 'gt'] = 'gt') -> int | None:
        """Channels of a dataset's images, if known."""
        section = self.options.datasets.get(phase)
        entry = DATASET_REGISTRY.get(section.type) if section is not None else None
        for source in (self.built_sets.get(phase), section, entry):
            for name in (f'{kind}_channels', 'channels', 'in_ch'):
                if isinstance(known := getattr(source, name, None), int):
                    return known
        return None


# ------------------------------------------------------------------ required sections and names


def check_required(run: Run) -> None:
    options = run.options
    if not run.is_training:
        if not run.test_sets and not run.is_cut('datasets'):
            run.report(('datasets',), 'no set to test on', 'one of any name but train')
        if not options.path.pretrain_network_g:
            run.report(('path', 'pretrain_network_g'), 'nothing', 'the file of the weights to test')
        return
    if options.train is None:
        run.report(('train',), 'nothing', 'the options of training: total_iter, optim_g, scheduler, …')
    if 'train' not in options.datasets:
        found = f'only {", ".join(options.datasets)}' if options.datasets else 'nothing'
        run.report(TRAIN_SET, found, 'a training set')
        return
    for name in ('gt_size', 'batch_size_per_gpu', 'dataroot_gt'):
        if getattr(options.datasets['train'], name, 'no such key') is None:
            run.report((*TRAIN_SET, name), 'nothing', 'a value, to train')


def check_noise(run: Run) -> None:
    for phase, section in run.used_sets.items():
        name = 'sigma_range' if phase == 'train' else 'sigma_test'
        if section.type == 'Dataset_GaussianDenoising' and getattr(section, name) is None:
            allowed = (
                'a number or a list, to train' if phase == 'train' else 'a number, for images at full size'
            )
            run.report(('datasets', phase, name), 'nothing', allowed)


def check_names(run: Run) -> None:
    users: dict[str, str] = {}
    for phase, section in run.test_sets.items():
        key: Key = ('datasets', phase) if section.name is None else ('datasets', phase, 'name')
        name = phase if section.name is None else section.name
        if not is_folder_name(name):
            run.report(key, show(name), FOLDER_NAMES)
        if users.setdefault(name, phase) != phase:
            run.report(key, f'{show(name)}, as the name of datasets.{users[name]}', 'a name of its own')
    for name in RESULT_COLUMNS & run.options.val.metrics.keys():
        allowed = 'another name, as the results have this column'
        run.report(('val', 'metrics', name), f'a metric called {show(name)}', allowed)


# ------------------------------------------------------------------ files and folders


def check_weights(run: Run) -> None:
    paths = run.options.path
    files = {'pretrain_network_g': paths.pretrain_network_g}
    if run.is_training:
        files['resume_state'] = paths.resume_state
    for name, file in files.items():
        if file and not _exists(file, Path.is_file):
            allowed = 'a file, or ~ for none' if run.is_training else 'a file'
            for task in TASKS.values():
                for sigma, remote in task.weights.items():
                    if _in_repository(file) == (task.folder, 'pretrained_models', remote.name):
                        allowed += f'; {how_to_get(task, sigma)}'
            run.report(('path', name), f'{show(file)}, {_absence(file, "file")}', allowed)


def check_data(run: Run) -> None:
    """Report all that one command gets in one sentence: a newcomer has none of it."""
    groups: dict[str, list[Key]] = {}
    for key, path in run.absent_data.items():
        groups.setdefault(_how_to_get(path) or path, []).append(key)
    hint = run.is_training
    for key, *others in groups.values():
        path = run.absent_data[key]
        kind = 'file' if key[-1] == 'meta_info_file' else 'folder'
        also = f' (as for {", ".join(map(dotted, others))})' if others else ''
        allowed = _how_to_get(path) or 'one that exists'
        if 'README' in allowed and hint:
            name = 'GaussianColorDenoising' if 'Denoising/' in allowed else 'Deblurring'
            allowed += (
                '; to try training without them, run python scripts/synthesize_blur.py, then python '
                f'basicsr/train.py -opt options/{name}_Restormer_quickstart.yml'
            )
            hint = False
        run.report(key, f'{show(path)}, {_absence(path, kind)}{also}', allowed)


def _absence(name: str, kind: str) -> str:
    unset = unset_variable(name)
    return f'whose environment variable {unset} is not set' if unset else f'which is not an existing {kind}'


def _exists(name: str, test: Callable[[Path], bool]) -> bool:
    try:
        return test(resolve(name))
    except (OSError, RuntimeError, ValueError):  # no permission, an unknown variable, an impossible name
        return False


def _in_repository(name: str) -> tuple[str, ...]:
    try:
        return resolve(name).relative_to(ROOT).parts
    except (RuntimeError, ValueError):  # an unknown home folder or variable, or outside
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
    return f'{pack}images' if pack else ''


# ------------------------------------------------------------------ training


def check_stages(run: Run, loader: LoaderOptions, train: TrainOptions) -> None:
    for name, limit_name in (('gt_sizes', 'gt_size'), ('mini_batch_sizes', 'batch_size_per_gpu')):
        limit = getattr(loader, limit_name)
        for index, value in enumerate(getattr(loader, name) or ()):
            if limit is not None and value > limit:
                run.report((*TRAIN_SET, name, index), str(value), f'at most {limit_name}, {limit}')
    lists = {name: getattr(loader, name) for name in ('mini_batch_sizes', 'gt_sizes', 'iters')}
    given = {name: len(values) for name, values in lists.items() if values is not None}
    for name in lists if given else ():
        if name not in given:
            run.report((*TRAIN_SET, name), 'nothing', f'a list, as there is {" and ".join(given)}')
        elif not given[name]:
            run.report((*TRAIN_SET, name), 'no stage', 'one or more')
    if len(set(given.values())) > 1:
        often = Counter(given.values())
        odd = min(given, key=lambda name: often[given[name]])
        found = ', '.join(f'{length} in {name}' for name, length in given.items())
        run.report((*TRAIN_SET, odd), f'stages of different number, {found}', 'lists of the same length')
    if loader.iters and sum(loader.iters) < train.total_iter:
        allowed = f'at least train.total_iter, {train.total_iter}'
        run.report((*TRAIN_SET, 'iters'), f'a sum of {sum(loader.iters)}', allowed)


def check_batches(run: Run, loader: LoaderOptions, train: TrainOptions) -> None:
    """The processes can share the global batch, and the training set has at least one of them."""
    num_gpu = run.options.num_gpu
    each = run.attempt((), run.options, lambda: accumulation(train.accumulate, num_gpu, run.world_size))
    if each is None or 'train' not in run.built_sets or run.is_cut(*TRAIN_SET, 'dataset_enlarge_ratio'):
        return
    count = run.world_size * each
    samples = len(run.built_sets['train']) * loader.dataset_enlarge_ratio
    size = max(loader.batch_size_per_gpu or 1, *(loader.mini_batch_sizes or [1]))
    if samples < size * count:
        made_of = f' ({count} micro-batches of {size})' if count > 1 else ''
        allowed = f'at least one batch, {size * count}{made_of}'
        how = 'lower batch_size_per_gpu and mini_batch_sizes, or raise dataset_enlarge_ratio'
        run.report(TRAIN_SET, f'a set of {samples} sample{"s" * (samples != 1)}', f'{allowed}; {how}')


def check_checkpointing(run: Run, loader: LoaderOptions, train: TrainOptions) -> None:
    key = ('train', 'activation_checkpointing')
    asked, name = train.activation_checkpointing, run.options.network_g.type
    stages = 1 if loader.iters is None else len(loader.iters)
    if isinstance(asked, list) and len(asked) != stages and not run.is_cut(*TRAIN_SET, 'iters'):
        allowed = f'true, false, or a list with one for each stage, {stages}'
        run.report(key, f'{len(asked)} items', allowed)
    if asked and not hasattr(ARCH_REGISTRY.get(name), 'checkpointing'):
        run.report(key, show(asked), f'false, as {name} has no attribute `checkpointing`')


def check_scheduler(run: Run, train: TrainOptions) -> None:
    key = ('train', 'scheduler')
    scheduler = run.attempt(key, train.scheduler, lambda: SCHEDULER_REGISTRY.build(train.scheduler))
    covers = getattr(scheduler, 'covers', None)
    if covers is not None and covers < train.total_iter:
        name = 'periods' if 'periods' in type(train.scheduler).model_fields else 'total_iter'
        found = f'a sum of {covers}' if name == 'periods' else str(covers)
        run.report((*key, name), found, f'at least train.total_iter, {train.total_iter}')


def check_losses(run: Run, train: TrainOptions) -> None:
    terms: dict[Key, Component] = {('train', 'losses', name): section for name, section in train.losses.items()}
    if 'pixel_opt' in train.losses:
        found, allowed = 'a loss called "pixel_opt"', 'another name than that of train.pixel_opt'
        run.report(('train', 'losses', 'pixel_opt'), found, allowed)
    if train.pixel_opt is not None:
        terms['train', 'pixel_opt'] = train.pixel_opt
    elif not terms and not run.is_cut('train', 'losses'):
        run.report(('train', 'pixel_opt'), 'nothing', 'a loss, here or in train.losses')
    for key, section in terms.items():
        loss = run.module(LOSS_REGISTRY, section, key)
        if getattr(loss, 'reduction', None) == 'none':
            run.report((*key, 'reduction'), '"none"', '"mean" or "sum", as training needs one number')
        if getattr(loss, 'toY', False) is True and run.channels('train') == 1:
            run.report((*key, 'toY'), 'true', 'false, as datasets.train has 1 channel')


def check_logger(run: Run) -> None:
    if run.options.logger.use_tb_logger:
        try:
            importlib.import_module('torch.utils.tensorboard')
        except Exception as error:  # an incompatible version raises anything
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            found = f'true, but TensorBoard cannot be imported ({reason})'
            run.report(('logger', 'use_tb_logger'), found, 'false, or true after `pip install tensorboard`')


# ------------------------------------------------------------------ network and validation


def check_network(run: Run) -> None:
    val = run.options.val
    net = run.module(ARCH_REGISTRY, run.options.network_g, ('network_g',))
    if net is None:
        return
    if not val.window_size % _multiple(type(net)):
        arguments = net, val.window_size, val.tlc, val.tile, val.tile_overlap
        run.attempt(('val',), val, lambda: check_arguments(*arguments))
    kinds: dict[str, Literal['lq', 'gt']] = {'inp_channels': 'lq', 'out_channels': 'gt'}
    for name, kind in kinds.items():
        value = getattr(run.options.network_g, name, None)
        for phase in run.used_sets:
            known = run.channels(phase, kind)
            if value is not None and known not in (None, value):
                run.report(('network_g', name), str(value), f'{known}, the channels of datasets.{phase}')
                break


def check_sizes(run: Run) -> None:
    """The sides of all images are multiples of what the network takes."""
    name, loader = run.options.network_g.type, run.options.datasets.get('train')
    sizes: dict[Key, int | None] = {('val', 'window_size'): run.options.val.window_size}
    if run.is_training and loader is not None:
        sizes |= {(*TRAIN_SET, 'gt_sizes', index): size for index, size in enumerate(loader.gt_sizes or ())}
        if loader.gt_sizes is None and not run.is_cut(*TRAIN_SET, 'gt_sizes'):
            sizes['datasets', 'train', 'gt_size'] = loader.gt_size
    multiple = _multiple(ARCH_REGISTRY.get(name))
    for key, value in sizes.items():
        if value is not None and value % multiple:
            run.report(key, str(value), f'a multiple of {multiple}, for {name}')


def _multiple(network: object) -> int:
    multiple = getattr(network, 'multiple', 1)
    return multiple if isinstance(multiple, int) and multiple > 0 else 1


def check_metrics(run: Run) -> None:
    """Metrics work on small images with the channels and the type of those that they will get."""
    sets = (
        phase for phase, section in run.test_sets.items() if getattr(section, 'dataroot_gt', '') is not None
    )
    channels = sorted(set(filter(None, map(run.channels, sets))))
    is_rounded = run.options.val.use_image

    def measure(section: MetricOptions) -> None:
        settings = section.arguments()
        if 'crop_border' in settings:  # the size of the images is unknown
            settings['crop_border'] = min(settings['crop_border'], 8)
        metric = Metric(METRIC_REGISTRY.get(section.type), settings)
        for count in channels:
            metric(*_two_images(count, is_rounded))

    for name, section in run.options.val.metrics.items():
        run.attempt(('val', 'metrics', name), section, partial(measure, section))


def _two_images(channels: int, is_rounded: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Two images, large enough for a metric of several scales, and their range."""
    images = np.random.default_rng(0).integers(0, 256, (2, 176, 184, channels), dtype=np.uint8)
    one, other = images if is_rounded else images / 255
    return one, other, 255.0 if is_rounded else 1.0


def check_precision(run: Run) -> None:
    train, val = run.options.train, run.options.val
    asked = {'train': 'fp32' if train is None else train.precision, 'val': val.precision}
    for section, precision in asked.items():
        if precision == 'fp16' and run.options.num_gpu == 0:
            found = '"fp16" on the CPU, where it is neither fast nor safe'
            run.report(
                (section, 'precision'), found, 'fp32, bf16, fp64' if section == 'train' else 'fp32, bf16'
            )


def find_mistakes(options: RunOptions, left_out: set[Key], purpose: Purpose, world_size: int) -> list[Mistake]:
    """The mistakes in valid options for a run of `world_size` processes. `left_out`: see `Run`."""
    run = Run(options, left_out, purpose, world_size)
    for check in (check_required, check_noise, check_names, check_weights, check_data):
        check(run)
    train, loader = options.train, options.datasets.get('train')
    if run.is_training and train is not None:
        check_logger(run)
        check_scheduler(run, train)
        check_losses(run, train)
        if loader is not None:
            check_stages(run, loader, train)
            check_batches(run, loader, train)
            check_checkpointing(run, loader, train)
    for check in (check_sizes, check_network, check_metrics, check_precision):
        check(run)
    return run.mistakes
