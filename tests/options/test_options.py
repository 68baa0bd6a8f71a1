"""Option files as their authors see them: YAML in, options or messages out."""

from __future__ import annotations

import json
import math
import re
import runpy
import textwrap
import warnings
from pathlib import Path

import pytest
import yaml

from basicsr.options.json_schema import json_schema
from basicsr.options.load import load_options
from basicsr.utils import registry
from basicsr.utils.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / 'options' / 'Deblurring_Restormer.yml'

SMALL = """\
name: small
datasets:
  train:
    type: Dataset_PairedImage
    dataroot_lq: lq
    dataroot_gt: gt
    gt_size: 64
    batch_size_per_gpu: 4
network_g:
  type: Restormer
  dim: 8
train:
  total_iter: 100
  scheduler:
    type: CosineAnnealingRestartCyclicLR
    periods: [100]
    eta_mins: [1e-6]
  optim_g: {type: AdamW, lr: 3e-4}
  pixel_opt:
    type: L1Loss
val:
  metrics:
    psnr:
      type: calculate_psnr
logger:
  print_freq: 10
"""


@pytest.fixture
def load(tmp_path):
    """Options of a text, with settings of --force_yml; or a list of mistakes, '<file>' for its name."""

    def load(text, *settings):
        path = tmp_path / 'options.yml'
        path.write_text(textwrap.dedent(text), encoding='utf-8')
        try:
            options, _, mistakes = load_options(path, settings)
        except OptionError as error:
            options, mistakes = None, error.mistakes
        assert (options is None) == bool(mistakes)
        return [mistake.replace(str(path), '<file>') for mistake in mistakes] or options

    return load


REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
imported = {}  # source → name, and what it registered


@pytest.fixture
def module(tmp_path_factory, monkeypatch):
    """Makes a user's module; returns the line of an option file that imports it. What it registers is forgotten
    after the test, and there again when a test makes the same module."""

    def module(source):
        if source not in imported:
            folder = tmp_path_factory.mktemp('users')
            imported[source] = f'users_options_{len(imported)}', {}
            (folder / f'{imported[source][0]}.py').write_text(textwrap.dedent(source))
            monkeypatch.syspath_prepend(folder)
        name, registered = imported[source]
        used.append(registered)
        for each, entries in registered.items():
            each._entries.update(entries)
        return f'custom_imports: [{name}]\n'

    used = []
    before = {each: dict(each._entries) for each in REGISTRIES}
    yield module
    for each, entries in before.items():
        for registered in used:
            registered[each] = {name: entry for name, entry in each._entries.items() if name not in entries}
        each._entries.clear()
        each._entries.update(entries)


def leaves(data, key=()):
    """Every (key, value), sections included."""
    for name, value in data.items():
        yield (*key, name), value
        if isinstance(value, dict):
            yield from leaves(value, (*key, name))


def at(options, key):
    for name in key:
        options = options[name] if isinstance(options, dict) else getattr(options, name)
    return options


# ------------------------------------------------------------------ what loads


def test_the_published_file_loads_unchanged():
    options, data, mistakes = load_options(PUBLISHED)
    assert mistakes == []
    written = yaml.safe_load(PUBLISHED.read_text())
    assert data == written
    for key, value in leaves(written):
        if not isinstance(value, dict):
            assert at(options, key) == value, key
    assert options.val.val_freq == 4000 and type(options.val.val_freq) is int
    assert options.logger.save_checkpoint_freq == 4000 and options.train.optim_g.lr == 3e-4


def test_the_published_file_written_again_by_pyyaml_loads(load):
    """PyYAML writes 4e3 as 4000.0 and 1e-6 as 1.0e-06."""
    options = load(yaml.safe_dump(yaml.safe_load(PUBLISHED.read_text())))
    assert options == load_options(PUBLISHED)[0]
    assert type(options.val.val_freq) is int


def test_defaults_need_not_be_written(load):
    options = load(SMALL)
    assert (options.num_gpu, options.manual_seed, options.model_type) == (1, 100, 'ImageCleanModel')
    assert options.train.mixing_augs.mixup is False and options.val.window_size == 8
    assert options.logger.keep_last == 3 and options.logger.print_freq == 10
    assert options.path.pretrain_network_g is None
    assert load('name: x\ndatasets: {}\nnetwork_g: {type: Restormer}').train is None


@pytest.mark.parametrize(
    ('written', 'meant'),
    [
        ('3e-4', 3e-4),
        ('3E-4', 3e-4),
        ('!!float 3e-4', 3e-4),
        ('+1e+0', 1.0),
        ('.5', 0.5),
        ('1.', 1.0),
        ('1.5e-3', 1.5e-3),
        ('0.0003', 3e-4),
        ('1', 1.0),
        ('0x10', 16.0),
        ('1_000', 1000.0),
    ],
)
def test_numbers(load, written, meant):
    assert load(SMALL, f'train:optim_g:lr={written}').train.optim_g.lr == meant
    assert load(SMALL.replace('3e-4', written)).train.optim_g.lr == meant


@pytest.mark.parametrize('written', ['4000', '4e3', '!!float 4e3', '4000.0', '4.0e+3', '!!int "4000"'])
def test_integers(load, written):
    for options in (load(SMALL, f'val:val_freq={written}'), load(SMALL + f'  save_checkpoint_freq: {written}')):
        values = {options.val.val_freq, options.logger.save_checkpoint_freq}
        assert 4000 in values and all(type(value) is int for value in values)
    sizes = load(SMALL, f'datasets:train:iters=[5, {written}]').datasets['train'].iters
    assert sizes == [5, 4000] and type(sizes[1]) is int


@pytest.mark.parametrize(
    'name', ['1:30', '010', '2024-01-01', '12:30:45', '=', 'a=b', 'a:b', '~x', 'é', '1e', '00']
)
def test_what_is_no_number_is_text(load, name):
    assert load(SMALL, f'name={name}').name == name


def test_yaml_merges(load):
    text = SMALL.replace('  train:\n', '  train: &train\n').replace(
        'network_g:\n', '  val:\n    <<: *train\n    dataroot_gt: other\nnetwork_g:\n'
    )
    datasets = load(text).datasets
    assert (datasets['val'].dataroot_gt, datasets['val'].dataroot_lq) == ('other', 'lq')
    assert datasets['train'].dataroot_gt == 'gt'
    assert load(text.replace('dataroot_gt: other', 'dataroot: other'))[0].startswith(
        '<file>:11: datasets.val.dataroot:'
    )


# ------------------------------------------------------------------ one mistake


NETWORK = (
    'type, inp_channels, out_channels, dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor, '
    'bias, LayerNorm_type, dual_pixel_task'
)


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        (
            'dim: 8',
            'din: 8',
            f'11: network_g.din: found an unknown key (did you mean dim?); allowed: {NETWORK}',
        ),
        ('total_iter: 100', 'total_iter: abc', '13: train.total_iter: found "abc"; allowed: an integer'),
        (
            'total_iter: 100',
            'total_iter: 0',
            '13: train.total_iter: found 0; allowed: greater than or equal to 1',
        ),
        (
            'total_iter: 100',
            'total_iter: -5',
            '13: train.total_iter: found -5; allowed: greater than or equal to 1',
        ),
        ('total_iter: 100', 'total_iter: 1.5', '13: train.total_iter: found 1.5; allowed: an integer'),
        ('total_iter: 100', 'total_iter: true', '13: train.total_iter: found true; allowed: an integer'),
        ('total_iter: 100', 'total_iter:', '13: train.total_iter: found null; allowed: an integer'),
        (
            '  total_iter: 100\n',
            '',
            '12: train.total_iter: found nothing; allowed: a value, as this key is needed',
        ),
        ('[100]', '100', '16: train.scheduler.periods: found 100; allowed: a list'),
        ('[100]', '[5, x]', '16: train.scheduler.periods.1: found "x"; allowed: an integer'),
        ('lr: 3e-4', 'lr: abc', '18: train.optim_g.lr: found "abc"; allowed: a number'),
        ('lr: 3e-4', 'lr: -1', '18: train.optim_g.lr: found -1; allowed: greater than or equal to 0'),
        ('lr: 3e-4', 'lr: .nan', '18: train.optim_g.lr: found NaN; allowed: a finite number'),
        ('lr: 3e-4', 'lr: 1, betas: [0.9]', '18: train.optim_g.betas: found [0.9]; allowed: 2 items'),
        ('lr: 3e-4', 'lr: 1, betas: [0.9, 1]', '18: train.optim_g.betas.1: found 1; allowed: less than 1'),
        ('AdamW', 'Adamw', '18: train.optim_g.type: found "Adamw"; allowed: "Adam", "AdamW", "Muon"'),
        ('type: Restormer', 'type: 5', '10: network_g.type: found 5; allowed: "Restormer"'),
        ('type: L1Loss', 'reduction: mean', '19: train.pixel_opt.type: found nothing; allowed: …'),
        (
            'type: calculate_psnr',
            'type: psnr',
            '24: val.metrics.psnr.type: found "psnr"; allowed: "calculate_psnr", …',
        ),
        ('type: calculate_psnr', 'type: [a]', '24: val.metrics.psnr.type: found ["a"]; allowed: …'),
        (
            'type: calculate_psnr',
            'type: calculate_psnr\n      better: up',
            '25: val.metrics.psnr.better: found "up"; allowed: "higher" or "lower"',
        ),
        (
            'type: calculate_psnr',
            'type: calculate_psnr\n      test_y: true',
            '25: val.metrics.psnr.test_y: found an unknown key (did you mean test_y_channel?); allowed: …',
        ),
        ('    type: L1Loss', '    []', '19: train.pixel_opt: found []; allowed: a mapping'),
        ('gt_size: 64', 'gt_size: [64]', '7: datasets.train.gt_size: found [64]; allowed: an integer'),
        ('gt_size: 64', 'io_backend: disk', '7: datasets.train.io_backend: found "disk"; allowed: a mapping'),
        (
            'gt_size: 64',
            'io_backend: {type: dsik}',
            '7: datasets.train.io_backend.type: found "dsik"; allowed: "disk" or "lmdb"',
        ),
        (
            'gt_size: 64',
            'io_backend: {type: disk, tipe: 1}',
            '7: datasets.train.io_backend.tipe: found an unknown key (did you mean type?); allowed: type',
        ),
        ('name: small', 'name: 5', '1: name: found 5; allowed: text (in quotes, …'),
        ('name: small', 'name: a/b', '1: name: found "a/b"; allowed: the name of a folder, without slashes'),
        ('name: small', 'name: ..', '1: name: found ".."; allowed: the name of a folder, without slashes'),
        ('name: small', 'name: ""', '1: name: found ""; allowed: the name of a folder, without slashes'),
        ('name: small', 'name: s\nnum_gpu: -1', '2: num_gpu: found -1; allowed: greater than or equal to 0'),
        ('name: small', 'name: s\nmodel_type: X', '2: model_type: found "X"; allowed: "ImageCleanModel"'),
        ('name: small', 'name: s\npath:', '2: path: found null; allowed: a mapping'),
        ('name: small', 'name: s\npath: 5', '2: path: found 5; allowed: a mapping'),
        ('name: small', 'name: s\npath: {resume_state: 5}', '2: path.resume_state: found 5; allowed: text …'),
        ('name: small', 'name: s\ncustom_imports: x', '2: custom_imports: found "x"; allowed: a list'),
        ('name: small', 'name: s\nname: t', '2: name: found again, after line 1; allowed: once'),
        (
            'name: small',
            'name: s\nmanual_seed: 10000000000000000000',
            '2: manual_seed: found 10000000000000000000; …',
        ),
    ],
)
def test_a_mistake_names_line_key_found_and_allowed(load, old, new, message):
    assert SMALL.count(old) == 1
    mistakes = load(SMALL.replace(old, new))
    assert isinstance(mistakes, list), mistakes
    wanted = f'<file>:{message}'
    if message.endswith('…'):
        assert any(line.startswith(wanted[:-1]) for line in mistakes), mistakes
    else:
        assert wanted in mistakes
    assert all(re.match(r'<file>:\d+: [\w.]+: found .+; allowed: .+', mistake) for mistake in mistakes)


@pytest.mark.parametrize(
    ('key', 'meant'),
    [
        ('total_iter', 'train.total_iter'),
        ('total_iters', 'train.total_iter'),
        ('lr', 'train.optim_g.lr'),
        ('train:lr', 'train.optim_g.lr'),
        ('train:print_freq', 'logger.print_freq'),
        ('train:TOTAL_ITER', None),
        ('train:totl_iter', 'total_iter'),
        ('train:pixel_opt:loss_wieght', 'loss_weight'),
        ('network_g:layernorm_type', 'LayerNorm_type'),
        ('network_g:dims', 'dim'),
        ('datasets:train:batch_size', 'batch_size_per_gpu'),
        ('datasets:train:num_workers', 'num_worker_per_gpu'),
        ('datasets:train:dataroot', 'dataroot_'),
        ('datasets:train:mixup', 'train.mixing_augs.mixup'),
        ('dataset', 'datasets'),
        ('gt_size', 'datasets.train.gt_size'),
        ('crop_border', 'val.metrics.psnr.crop_border'),
        ('val:crop_border', 'val.metrics.psnr.crop_border'),
        ('val:metrics:psnr:tpe', 'type'),
        ('network:type', 'network_g'),
        ('qwertz', None),
        ('train:qwertz', None),
        ('5', None),
        ('train:scheduler:total_iter', 'train.total_iter'),
        ('train:scheduler:eta_min', 'eta_mins'),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(load, key, meant):
    (mistake,) = load(SMALL, f'{key}=1')
    name = key.replace(':', '.').removesuffix('.type')
    hint = f' (did you mean {meant}' if meant else ';'
    assert mistake.startswith(f'--force_yml: {name}: found an unknown key{hint}')
    assert meant is None or meant.endswith('_') or f'{meant}?); allowed: ' in mistake


def test_all_mistakes_are_reported_in_the_order_of_the_lines(load):
    text = SMALL
    for right, wrong in (
        ('name: small', 'name: 5'),
        ('gt_size: 64', 'gt_size: big'),
        ('type: Restormer', 'type: Restromer'),
        ('periods: [100]', 'period: [100]'),
        ('lr: 3e-4', 'lr: fast'),
        ('  print_freq: 10', '  print_freq: 0\n  pirnt_freq: 10'),
    ):
        text = text.replace(right, wrong)
    mistakes = load(text, 'val:val_freq=often', 'train:total_iter=1.5', 'oops')
    found = [re.match(r'(\S+?): (\S+): found', mistake) for mistake in mistakes[1:]]
    assert mistakes[0] == '--force_yml: found "oops"; allowed: KEY:SUBKEY=VALUE'
    assert sorted(match.groups() for match in found[:2]) == [
        ('--force_yml', 'train.total_iter'),
        ('--force_yml', 'val.val_freq'),
    ]
    assert [match.groups() for match in found[2:]] == [
        ('<file>:1', 'name'),
        ('<file>:7', 'datasets.train.gt_size'),
        ('<file>:10', 'network_g.type'),
        ('<file>:14', 'train.scheduler.periods'),
        ('<file>:16', 'train.scheduler.period'),
        ('<file>:18', 'train.optim_g.lr'),
        ('<file>:26', 'logger.print_freq'),
        ('<file>:27', 'logger.pirnt_freq'),
    ]


def test_a_key_named_like_the_type_beside_it(load, module):
    """pydantic puts the type's name into its locations: it is no key."""
    for text in (SMALL, module(ARCHITECTURE) + SMALL):
        (mistake,) = load(text, 'network_g:Restormer=5')
        assert mistake.startswith('--force_yml: network_g.Restormer: found an unknown key')
        (mistake,) = load(text, 'network_g:dim=[5]')
        assert mistake == '--force_yml: network_g.dim: found [5]; allowed: an integer'
        (mistake,) = load(text, 'val:metrics:calculate_psnr={type: calculate_psnr, crop_border: x}')
        assert mistake == '--force_yml: val.metrics.calculate_psnr.crop_border: found "x"; allowed: an integer'


# ------------------------------------------------------------------ files that are no option files


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', '<file>: found nothing; allowed: a mapping'),
        ('# nothing\n', '<file>: found nothing; allowed: a mapping'),
        ('~', '<file>: found nothing; allowed: a mapping'),
        ('5', '<file>: found 5; allowed: a mapping'),
        ('- a\n- b\n', '<file>: found ["a", "b"]; allowed: a mapping'),
        ('name: [1, 2\n', '<file>:2: is not valid YAML'),
        ('name: x\n\tval: 5\n', '<file>:2: is not valid YAML'),
        ('name: a: b\n', '<file>:1: is not valid YAML'),
        ('name: *nothing\n', '<file>:1: is not valid YAML'),
        ('name: x\n---\nname: y\n', '<file>:2: is not valid YAML'),
        ('name: "\\ud800"\n', '<file>:1: is not valid YAML'),
        ('"\\ud800": 5\n', '<file>:1: is not valid YAML'),
        ('name: \x00\n', '<file>: is not valid YAML'),
        ('name: !!python/object/apply:os.system ["echo hacked"]\n', '<file>:1: is not valid YAML'),
        ('name: !!python/name:os.system\n', '<file>:1: is not valid YAML'),
        ('name: !mine {a: 1}\n', '<file>:1: is not valid YAML'),
        ('name: !!binary aGVsbG8=\n', '<file>:1: is not valid YAML'),
        ('name: !!timestamp 2024-01-01\n', '<file>:1: is not valid YAML'),
        ('name: !!set {a, b}\n', '<file>:1: is not valid YAML'),
        ('name: !!omap [a: 1]\n', '<file>:1: is not valid YAML'),
        ('name: !!bool maybe\n', '<file>:1: is not valid YAML'),
        ('name: !!int ""\n', '<file>:1: is not valid YAML'),
        ('name: !!float x\n', '<file>:1: is not valid YAML'),
        ('name: !!str {a: 1}\n', '<file>:1: is not valid YAML'),
        (f'name: {"9" * 5000}\n', '<file>:1: is not valid YAML'),
        (f'name: 0x{"f" * 5000}\n', '<file>:1: is not valid YAML'),
        ('? [a, b]\n: 5\n', '<file>:1: is not valid YAML'),
        ('<<: 5\n', '<file>:1: is not valid YAML'),
        ('&a a: *a\n', '<file>: found'),
        ('a: &a [*a]\n', '<file>:1: is not valid YAML'),
        ('a: &a {<<: *a}\n', '<file>'),
        (f'name: {"[" * 600}{"]" * 600}\n', '<file>: is not valid YAML'),
        (f'name: {"[" * 40}{"]" * 40}\n', '<file>:1: is not valid YAML'),
        (
            'a: &a [x, x, x, x, x, x, x, x, x, x]\n'
            + ''.join(
                f'{name}: &{name} [{", ".join([f"*{before}"] * 10)}]\n'
                for before, name in zip('abcdefghij', 'bcdefghijk', strict=True)
            ),
            '<file>:',
        ),
    ],
    ids=lambda value: value[:24],
)
def test_what_cannot_be_read(load, text, said, capfd):
    mistakes = load(text)
    if said != '<file>: found':
        assert mistakes[0].startswith(said)
    assert 'hacked' not in capfd.readouterr().out


@pytest.mark.parametrize('content', [None, b'\xff\xfe\x00', b'name: \xff'])
def test_files_that_cannot_be_opened(tmp_path, content):
    path = tmp_path / 'options.yml'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match=r'options\.yml: cannot be read as an option file: '):
        load_options(path)
    with pytest.raises(OptionError, match='cannot be read as an option file: Is a directory'):
        load_options(tmp_path)
    with pytest.raises(OptionError, match='cannot be read as an option file: '):
        load_options('a\0b')


# ------------------------------------------------------------------ --force_yml


@pytest.mark.parametrize(
    ('setting', 'key', 'value'),
    [
        ('name=other', ('name',), 'other'),
        ('train:total_iter=5', ('train', 'total_iter'), 5),
        ('train:optim_g:betas=[0.5, 0.9]', ('train', 'optim_g', 'betas'), [0.5, 0.9]),
        ('train:use_grad_clip=false', ('train', 'use_grad_clip'), False),
        ('logger:keep_last=~', ('logger', 'keep_last'), None),
        ('logger:keep_last=', ('logger', 'keep_last'), None),
        ('logger:keep_last=null', ('logger', 'keep_last'), None),
        ('path:pretrain_network_g=C:/a=b.pth', ('path', 'pretrain_network_g'), 'C:/a=b.pth'),
        ('path:pretrain_network_g==', ('path', 'pretrain_network_g'), '='),
        ('path:pretrain_network_g="5"', ('path', 'pretrain_network_g'), '5'),
        ('path:resume_state=x/y z.state', ('path', 'resume_state'), 'x/y z.state'),
        ('dist_params:port=1234', ('dist_params', 'port'), 1234),
        ('val:metrics:ssim:type=calculate_ssim', ('val', 'metrics', 'ssim', 'type'), 'calculate_ssim'),
        ('network_g:heads=[1,2,4,8]', ('network_g', 'heads'), [1, 2, 4, 8]),
        ('train:scheduler:periods:0=120', ('train', 'scheduler', 'periods'), [120]),
        ('val:metrics={}', ('val', 'metrics'), {}),
        (' train:total_iter = 7 ', ('train', 'total_iter'), 7),
    ],
)
def test_force_yml(load, setting, key, value):
    assert at(load(SMALL, setting), key) == value


def test_force_yml_settings_work_in_their_order(load):
    options = load(SMALL, 'val:metrics={}', 'val:metrics:a:type=calculate_ssim', 'name=x', 'name=y')
    assert (list(options.val.metrics), options.name) == (['a'], 'y')


def test_force_yml_fills_a_section_that_is_null(load):
    assert load(SMALL + 'path:\n', 'path:strict_load_g=false').path.strict_load_g is False


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('train', '--force_yml: found "train"; allowed: KEY:SUBKEY=VALUE'),
        ('=5', '--force_yml: found "=5"; allowed: KEY:SUBKEY=VALUE'),
        ('train:=5', '--force_yml: found "train:=5"; allowed: KEY:SUBKEY=VALUE'),
        ('train::total_iter=5', '--force_yml: found "train::total_iter=5"; allowed: KEY:SUBKEY=VALUE'),
        ('', '--force_yml: found ""; allowed: KEY:SUBKEY=VALUE'),
        ('name:x=5', '--force_yml: name.x: found "small" at name; allowed: a mapping there'),
        (
            'train:total_iter:x:y=5',
            '--force_yml: train.total_iter.x.y: found 100 at train.total_iter; allowed: a',
        ),
        ('train:total_iter=[5', '--force_yml: train.total_iter: "[5": is not valid YAML: '),
        ('train:total_iter=!!python/object/apply:os.getcwd []', '--force_yml: train.total_iter: "!!python'),
        (
            'train:total_iter=__import__("os")',
            '--force_yml: train.total_iter: found "__import__(\\"os\\")"; allowed: an',
        ),
        (
            'train:scheduler:periods:0=x',
            '--force_yml: train.scheduler.periods.0: found "x"; allowed: an integer',
        ),
        (
            'train:scheduler:periods:1=5',
            '--force_yml: train.scheduler.periods.1: found [100] at train.scheduler.periods; allowed: a place in the '
            'list, from 0 to 0',
        ),
        ('train:scheduler:periods:x=5', '--force_yml: train.scheduler.periods.x: found [100] at'),
        ('train:scheduler:periods:-1=5', '--force_yml: train.scheduler.periods.-1: found [100] at'),
        ('train:scheduler:periods:0:z=5', '--force_yml: train.scheduler.periods.0.z: found 100 at'),
        ('network_g:heads=[1, x]', '--force_yml: network_g.heads.1: found "x"; allowed: an integer'),
        ('train:optim_g={lr: 1}', '--force_yml: train.optim_g.type: found nothing; allowed: '),
        ('train:optim_g={type: Adam, lr: 1, lr: 2}', '--force_yml: train.optim_g.lr: found again, '),
        ('trian:total_iter=5', '--force_yml: trian: found an unknown key (did you mean train?); allowed: '),
        ('train.total_iter=5', '--force_yml: train.total_iter: found an unknown key'),
    ],
)
def test_force_yml_mistakes(load, setting, message):
    (mistake,) = load(SMALL, setting)
    assert mistake.startswith(message)


def test_a_mistake_beside_a_forced_key_is_the_files(load):
    (mistake,) = load(SMALL.replace('lr: 3e-4', 'lr: x'), 'train:optim_g:eps=1e-7')
    assert mistake.startswith('<file>:18: train.optim_g.lr: ')


# ------------------------------------------------------------------ nobody changes them


def test_options_are_frozen_and_arguments_are_copies(load):
    options = load(SMALL, 'network_g:heads=[1,2,4,8]', 'val:metrics:psnr:better=lower')
    for section in (options, options.train, options.network_g, options.path):
        with pytest.raises(ValueError, match='frozen'):
            section.name = 'x'
    before = options.model_dump_json()
    given = options.network_g.arguments()
    assert given == {'dim': 8, 'heads': [1, 2, 4, 8]}
    given['heads'].append(5)
    given.pop('dim')
    assert options.model_dump_json() == before
    dataset = options.datasets['train']
    assert dataset.arguments() == {'dataroot_lq': 'lq', 'dataroot_gt': 'gt'}
    assert options.val.metrics['psnr'].arguments() == {}


def test_loading_changes_neither_its_arguments_nor_a_second_load(load):
    settings = ['val:metrics:psnr:crop_border=4', 'train:optim_g:betas=[0.5, 0.5]']
    kept = list(settings)
    once = load(SMALL, *settings)
    assert settings == kept
    assert load(SMALL, *settings) == once
    assert load(SMALL).train.optim_g.betas == [0.9, 0.999]


@pytest.mark.parametrize('path', sorted((ROOT / 'options').rglob('*.yml')), ids=lambda path: path.stem)
def test_the_snapshot_of_a_run_loads_as_the_same_options(load, path):
    options, _, mistakes = load_options(path)
    assert mistakes == []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = load(yaml.safe_dump(options.model_dump(mode='json'), sort_keys=False))
    assert json.loads(again.model_dump_json()) == json.loads(options.model_dump_json())


# ------------------------------------------------------------------ a user's own classes


ARCHITECTURE = """
    from __future__ import annotations

    from typing import TYPE_CHECKING, Literal

    from torch import nn

    from basicsr.utils.registry import ARCH_REGISTRY

    if TYPE_CHECKING:
        from nowhere import Nothing


    @ARCH_REGISTRY.register()
    class MyNet(nn.Module):
        '''A network.

        Args:
            dim: channels.
            depth: blocks,
                in all.

        Returns nothing.
        '''

        def __init__(
            self,
            dim: int,
            plain,
            depth: int = None,
            *,
            kind: Literal['a', 'b'] = 'a',
            size: tuple[int, int] = (3, 5),
            act=nn.GELU,
            norm: nn.Module = nn.LayerNorm,
            nothing: Nothing | None = None,
            wrong: 'no annotation' = 1,
            rate: int = 0.5,
            ratio: float | None = None,
            either: int | list[int] = 4,
            limit: float = float('inf'),
            copy: bool = True,
            _hidden: int = 5,
        ):
            super().__init__()
            self.given = {key: value for key, value in locals().items() if key not in ('self', '__class__')}
"""


def with_network(network):
    return SMALL.replace('network_g:\n  type: Restormer\n  dim: 8\n', f'network_g: {network}\n')


@pytest.mark.parametrize(
    ('network', 'mistakes'),
    [
        ('{type: MyNet, dim: 5, plain: x}', []),
        ('{type: MyNet, dim: 5, plain: ~, depth: ~, kind: b, size: [1, 2], ratio: 2, either: [5]}', []),
        (
            '{type: MyNet, dim: 5, plain: {a: [1]}, act: relu, norm: x, nothing: 5, wrong: x, copy: no}',
            [],
        ),
        ('{type: MyNet}', ['dim: found nothing', 'plain: found nothing']),
        ('{type: MyNet, dim: x, plain: 1}', ['dim: found "x"; allowed: an integer']),
        ('{type: MyNet, dim: ~, plain: 1}', ['dim: found null; allowed: an integer']),
        ('{type: MyNet, dim: 1, plain: 1, depth: x}', ['depth: found "x"; allowed: an integer']),
        ('{type: MyNet, dim: 1, plain: 1, kind: c}', ['kind: found "c"; allowed: "a" or "b"']),
        ('{type: MyNet, dim: 1, plain: 1, size: [1]}', ['size.1: found nothing']),
        ('{type: MyNet, dim: 1, plain: 1, size: 3}', ['size: found 3; allowed: ']),
        ('{type: MyNet, dim: 1, plain: 1, ratio: x}', ['ratio: found "x"; allowed: a number']),
        ('{type: MyNet, dim: 1, plain: 1, either: x}', ['either: found "x"; allowed: an integer or a list']),
        (
            '{type: MyNet, dim: 1, plain: 1, dept: 5}',
            ['dept: found an unknown key (did you mean depth?); allowed: '],
        ),
        ('{type: MyNet, dim: 1, plain: 1, _hidden: 5}', ['_hidden: found an unknown key']),
        ('{type: MyNett}', ['type: found "MyNett"; allowed: "MyNet", "Restormer"']),
    ],
)
def test_an_architecture_of_ones_own_is_checked_by_its_constructor(load, module, network, mistakes):
    said = load(module(ARCHITECTURE) + with_network(network))
    if not mistakes:
        assert said.network_g.type == 'MyNet'
        return
    assert len(said) == len(mistakes)
    for line, mistake in zip(said, mistakes, strict=True):
        assert line.startswith(f'<file>:10: network_g.{mistake}')


def test_an_architecture_of_ones_own_gets_what_is_written(load, module):
    imports = module(ARCHITECTURE)
    options = load(imports + with_network('{type: MyNet, dim: 4e0, plain: 1.0, size: [1, 2], copy: no}'))
    given = registry.ARCH_REGISTRY.build(options.network_g).given
    assert given | {'act': 0, 'norm': 0} == {
        'dim': 4, 'plain': 1.0, 'depth': None, 'kind': 'a', 'size': (1, 2), 'act': 0, 'norm': 0,
        'nothing': None, 'wrong': 1, 'rate': 0.5, 'ratio': None, 'either': 4, 'limit': math.inf,
        'copy': False, '_hidden': 5,
    }  # fmt: skip
    assert type(given['dim']) is int and type(given['plain']) is float and given['act'].__name__ == 'GELU'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        snapshot = yaml.safe_dump(options.model_dump(mode='json'))
        assert json.loads(options.model_dump_json())['network_g']['kind'] == 'a'
    again = registry.ARCH_REGISTRY.build(load(snapshot).network_g).given
    assert again['act'].__name__ == 'GELU' and again['limit'] == math.inf and again['size'] == (1, 2)


def test_the_schema_knows_an_architecture_of_ones_own(load, module):
    load(module(ARCHITECTURE) + SMALL)
    mine = json_schema()['$defs']['MyNet']
    assert mine['required'] == ['type', 'dim', 'plain'] and mine['description'] == 'A network.'
    assert mine['properties']['dim']['description'] == 'channels.'
    assert mine['properties']['depth']['description'] == 'blocks, in all.'


def test_a_constructor_with_any_keyword_takes_any_key(load, module):
    imports = module("""
        from basicsr.utils.registry import ARCH_REGISTRY

        @ARCH_REGISTRY.register('Any')
        def network(*blocks, dim: int = 5, **settings):
            return blocks, dim, settings
    """)
    options = load(imports + with_network('{type: Any, dim: 1, foo: 5, bar: [x]}'))
    assert registry.ARCH_REGISTRY.build(options.network_g) == ((), 1, {'foo': 5, 'bar': ['x']})
    assert load(imports + with_network('{type: Any, dim: x, foo: 5}')) == [
        '<file>:10: network_g.dim: found "x"; allowed: an integer'
    ]


def test_datasets_losses_and_metrics_of_ones_own(load, module):
    imports = module("""
        from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY

        @DATASET_REGISTRY.register()
        class Mine:
            def __init__(self, folder: str, gt_size: int, depth: int = 8):
                self.given = folder, gt_size, depth

        @LOSS_REGISTRY.register()
        class MyLoss:
            def __init__(self, loss_weight: float = 1.0, *, type=None, model_fields=None): ...

        @METRIC_REGISTRY.register()
        def my_metric(restored, truth, *, window: int = 5, data_range=None): ...
    """)
    text = (imports + SMALL).replace('type: L1Loss', 'type: MyLoss').replace('calculate_psnr', 'my_metric')
    text = text.replace('Dataset_PairedImage', 'Mine').replace('dataroot_lq: lq', 'folder: lq')
    text = text.replace('    dataroot_gt: gt\n', '')
    options = load(text, 'val:metrics:psnr:window=7', 'val:metrics:psnr:better=lower')
    # What the constructor names goes to it, also where the loader has the key, too.
    assert registry.DATASET_REGISTRY.build(options.datasets['train']).given == ('lq', 64, 8)
    assert options.datasets['train'].batch_size_per_gpu == 4
    assert options.val.metrics['psnr'].arguments() == {'window': 7}
    mistakes = load(
        text, 'val:metrics:psnr:windw=7', 'train:pixel_opt:loss_weight=x', 'datasets:train:folder=5'
    )
    assert [mistake.split(': found')[0] for mistake in mistakes] == [
        '--force_yml: datasets.train.folder',
        '--force_yml: train.pixel_opt.loss_weight',
        '--force_yml: val.metrics.psnr.windw',
    ]
    assert 'did you mean window?' in mistakes[2]


@pytest.mark.parametrize(
    ('source', 'said'),
    [
        (None, "ModuleNotFoundError: No module named 'not_there'"),
        ('1 / 0', 'ZeroDivisionError: division by zero'),
        ('def (', 'SyntaxError: '),
        ('raise SystemExit(3)', 'SystemExit: 3'),
        (
            'from basicsr.utils.registry import ARCH_REGISTRY as A\n@A.register()\nclass Restormer: ...\n',
            "ValueError: architecture 'Restormer' is registered twice",
        ),
    ],
)
def test_imports_that_fail(load, module, source, said):
    imports = 'custom_imports: [not_there]\n' if source is None else module(source)
    mistakes = load(imports + SMALL, 'name=5')
    assert len(mistakes) == 2 and mistakes[0].startswith('--force_yml: name: found 5; ')
    assert re.match(r'<file>:1: custom_imports\.0: found "\w+", whose import fails \(', mistakes[1])
    assert said in mistakes[1] and '; allowed: modules that can be imported' in mistakes[1]


@pytest.mark.parametrize('name', ['', '.', '.relative', 'a..b', '5', 'é'])
def test_names_that_are_no_modules(load, name):
    (mistake,) = load(SMALL, f'custom_imports=["{name}"]')
    assert mistake.startswith(f'--force_yml: custom_imports.0: found "{name}", whose import fails (')


# ------------------------------------------------------------------ the schema


def resolved(schema, root):
    """The alternatives that a schema allows."""
    if '$ref' in schema:
        schema = root['$defs'][schema['$ref'].removeprefix('#/$defs/')]
    members = [*schema.get('oneOf', ()), *schema.get('anyOf', ()), *schema.get('allOf', ())]
    return [schema, *(each for member in members for each in resolved(member, root))]


def shape(schema, root):
    """Of every definition: keys, needed keys, whether others are allowed."""
    sections = {'': schema, **root['$defs']}
    return {
        name: (
            sorted(section.get('properties', ())),
            sorted(section.get('required', ())),
            section.get('additionalProperties'),
        )
        for name, section in sections.items()
    }


def test_the_committed_schema_is_that_of_the_code():
    committed = json.loads((ROOT / 'options' / 'schema.json').read_text())
    assert shape(committed, committed) == shape(json_schema(), json_schema()), (
        'python -m basicsr.options.json_schema > options/schema.json'
    )


@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # it is imported already
def test_the_module_prints_the_schema(capsys):
    runpy.run_module('basicsr.options.json_schema', run_name='__main__', alter_sys=True)
    printed = json.loads(capsys.readouterr().out)
    assert shape(printed, printed) == shape(json_schema(), json_schema())


@pytest.mark.parametrize('path', sorted((ROOT / 'options').rglob('*.yml')), ids=lambda path: path.stem)
def test_every_key_of_the_option_files_is_in_the_schema(path):
    root = json.loads((ROOT / 'options' / 'schema.json').read_text())

    def check(data, schema, key):
        if not isinstance(data, dict):
            return
        sections = [
            each for each in resolved(schema, root) if 'properties' in each or 'additionalProperties' in each
        ]
        typed = [
            each
            for each in sections
            if each.get('properties', {}).get('type', {}).get('const') == data.get('type')
        ]
        assert sections, key
        for name, value in data.items():
            section = (typed or sections)[0]
            here = section.get('properties', {}).get(name, section.get('additionalProperties'))
            assert here, (*key, name)
            if here is not True:
                check(value, here, (*key, name))
        assert set((typed or sections)[0].get('required', ())) <= set(data), key

    check(yaml.safe_load(path.read_text()), root, ())
    modeline = re.match(r'# yaml-language-server: \$schema=(\S+)\n', path.read_text())
    assert (path.parent / modeline[1]).resolve() == ROOT / 'options' / 'schema.json'


def test_the_schema_describes_the_keys():
    definitions = json_schema()['$defs']
    restormer = definitions['Restormer']
    assert all(value.get('description') for name, value in restormer['properties'].items() if name != 'type')
    assert restormer['description'] == 'The network.'
    assert 'channels at full resolution' in restormer['properties']['dim']['description']
    assert definitions['calculate_psnr']['properties']['crop_border']['description'].startswith(
        'pixels to leave out'
    )
    assert 'img1' not in definitions['calculate_psnr']['properties']
    assert definitions['TrainOptions']['properties']['total_iter']['description']
    paired = definitions['Dataset_PairedImage']['properties']
    assert paired['dataroot_lq']['description'] and paired['gt_size']['description']
    assert 'title' not in restormer['properties']['dim']


def test_a_class_is_registered_with_and_without_parentheses():
    nets = registry.Registry('net')

    @nets.register
    class Bare: ...

    class Called: ...

    class Named: ...

    assert nets.register(Called) is Called and nets.register('other')(Named) is Named
    assert (nets.get('Bare'), nets.get('Called'), nets.get('other')) == (Bare, Called, Named)
    assert isinstance(Bare, type)
