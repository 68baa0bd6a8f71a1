"""Option files key by key: YAML in, options or messages out."""

from __future__ import annotations

import json
import math
import re
import runpy
import warnings
from pathlib import Path

import pytest
import yaml
from option_texts import SMALL, cases

from basicsr.options.json_schema import json_schema
from basicsr.options.load import read_options
from basicsr.utils import registry

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / 'options' / 'Deblurring_Restormer.yml'
OPTION_FILES = sorted((ROOT / 'options').rglob('*.yml'))


def leaves(data, key=()):
    """Every (key, value) that is no section."""
    for name, value in data.items():
        yield from leaves(value, (*key, name)) if isinstance(value, dict) else [((*key, name), value)]


def at(options, key):
    for name in key:
        options = options[name] if isinstance(options, dict) else getattr(options, name)
    return options


# ------------------------------------------------------------------ what loads


def test_the_published_file_loads_unchanged(load):
    options = read_options(PUBLISHED)
    written = yaml.safe_load(PUBLISHED.read_text())
    for key, value in leaves(written):
        assert at(options, key) == value, key
    assert options.val.val_freq == 4000 and type(options.val.val_freq) is int
    assert options.logger.save_checkpoint_freq == 4000 and options.train.optim_g.lr == 3e-4
    # PyYAML writes 4e3 as 4000.0 and 1e-6 as 1.0e-06.
    again = load(yaml.safe_dump(written))
    assert again == options and type(again.val.val_freq) is int


@pytest.mark.parametrize('path', OPTION_FILES, ids=lambda path: path.stem)
def test_the_snapshot_of_a_run_loads_as_the_same_options(load, path):
    options = read_options(path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = load(yaml.safe_dump(options.model_dump(mode='json'), sort_keys=False))
    assert json.loads(again.model_dump_json()) == json.loads(options.model_dump_json())


def test_defaults(load):
    options = load(SMALL)
    assert (options.num_gpu, options.manual_seed, options.model_type) == (1, 100, 'ImageCleanModel')
    assert options.train.mixing_augs.mixup is False and options.val.window_size == 8
    assert options.logger.keep_last == 3 and options.logger.print_freq == 10
    assert options.path.pretrain_network_g is None and options.train.losses == {}
    assert load('name: x\ndatasets: {}\nnetwork_g: {type: Restormer}').train is None


def test_an_empty_section_takes_its_defaults(load):
    text = SMALL.replace('  print_freq: 10\n', '')
    plain = text.removesuffix('logger:\n')
    empty = text + '  # print_freq: 10\npath:\ndist_params: ~\ncustom_imports:\n'
    keys = 'val', 'train:mixing_augs', 'train:losses', 'datasets:train:io_backend', 'network_g:heads'
    found = load(empty, *(f'{key}=~' for key in keys), 'train:mixing_augs=')
    assert found == load(plain, 'val={}')


def test_null_switches_a_set_a_loss_or_a_metric_off(load):
    text = SMALL.replace('  train:\n', '  val: ~\n  train:\n')
    options = load(text, 'val:metrics:psnr=~', 'train:losses={a: ~, b: {type: MSELoss}}', 'datasets:other=~')
    assert (list(options.datasets), options.val.metrics, list(options.train.losses)) == (['train'], {}, ['b'])
    assert list(load(SMALL, 'datasets:train=~').datasets) == []


@pytest.mark.parametrize(
    ('kind', 'defaults'),
    [
        ('Adam', {'weight_decay': 0}),
        ('AdamW', {'weight_decay': 0.01}),
        ('Muon', {'weight_decay': 0.01, 'momentum': 0.95}),
    ],
)
def test_optimizers_have_their_defaults_and_refuse_other_keys(load, kind, defaults):
    section = load(SMALL, f'train:optim_g:type={kind}').train.optim_g
    common = {'type': kind, 'lr': 3e-4, 'betas': [0.9, 0.999], 'eps': 1e-8}
    assert section.model_dump() == {**common, **defaults}
    for key in ('foreach', 'amsgrad', 'fused', 'params', *({'momentum'} - {*defaults})):
        (mistake,) = load(SMALL, f'train:optim_g:type={kind}', f'train:optim_g:{key}=true')
        assert mistake.startswith(f'--force_yml: train.optim_g.{key}: found an unknown key')


def test_further_losses(load):
    text = SMALL.replace(
        '  pixel_opt:\n    type: L1Loss\n', '  losses:\n    smooth: {type: CharbonnierLoss, eps: 1e-2}\n'
    )
    train = load(text, 'train:losses:psnr={type: PSNRLoss, loss_weight: 0.5}').train
    assert train.pixel_opt is None
    assert {name: (loss.type, loss.arguments()) for name, loss in train.losses.items()} == {
        'smooth': ('CharbonnierLoss', {'eps': 0.01}),
        'psnr': ('PSNRLoss', {'loss_weight': 0.5}),
    }
    (mistake,) = load(text, 'train:losses:smooth:ep=1')
    assert mistake.startswith(
        '--force_yml: train.losses.smooth.ep: found an unknown key (did you mean eps?); allowed: '
    )


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
    assert options.datasets['train'].arguments() == {'dataroot_lq': 'lq', 'dataroot_gt': 'gt'}
    assert options.val.metrics['psnr'].arguments() == {}


# ------------------------------------------------------------------ one mistake

MISTAKES = r"""
dim: 8  →  din: 8
    11: network_g.din: found an unknown key (did you mean dim?); allowed: NETWORK
total_iter: 100  →  total_iter: abc
    13: train.total_iter: found "abc"; allowed: an integer
total_iter: 100  →  total_iter: 0
    13: train.total_iter: found 0; allowed: greater than or equal to 1
total_iter: 100  →  total_iter: -5
    13: train.total_iter: found -5; allowed: greater than or equal to 1
total_iter: 100  →  total_iter: 1.5
    13: train.total_iter: found 1.5; allowed: an integer
total_iter: 100  →  total_iter: true
    13: train.total_iter: found true; allowed: an integer
total_iter: 100  →  total_iter:
    13: train.total_iter: found null; allowed: an integer
total_iter: 100  →  warmup_iter: 5
    12: train.total_iter: found nothing; allowed: a value (required)
[100]  →  100
    16: train.scheduler.periods: found 100; allowed: a list
[100]  →  [5, x]
    16: train.scheduler.periods.1: found "x"; allowed: an integer
lr: 3e-4  →  lr: abc
    18: train.optim_g.lr: found "abc"; allowed: a number
lr: 3e-4  →  lr: -1
    18: train.optim_g.lr: found -1; allowed: greater than or equal to 0
lr: 3e-4  →  lr: .nan
    18: train.optim_g.lr: found NaN; allowed: a finite number
lr: 3e-4  →  lr: 1, betas: [0.9]
    18: train.optim_g.betas: found [0.9]; allowed: at least 2 items
lr: 3e-4  →  lr: 1, betas: [0.9, 0.9, 0.9]
    18: train.optim_g.betas: found [0.9, 0.9, 0.9]; allowed: at most 2 items
lr: 3e-4  →  lr: 1, betas: [0.9, 1]
    18: train.optim_g.betas.1: found 1; allowed: less than 1
lr: 3e-4  →  lr: 1, eps: 0
    18: train.optim_g.eps: found 0; allowed: greater than 0
AdamW  →  Adamw
    18: train.optim_g.type: found "Adamw"; allowed: "Adam", "AdamW", "Muon"
type: Restormer  →  type: 5
    10: network_g.type: found 5; allowed: "Restormer"
type: L1Loss  →  tpye: L1Loss
    20: train.pixel_opt.tpye: found an unknown key (did you mean type?); allowed: type
total_iter: 100  →  train.total_iter: 100
    13: train.train.total_iter: found an unknown key (did you mean total_iter?); …
logger:  →  train:total_iter: 5\nlogger:
    25: train:total_iter: found an unknown key (write total_iter in the section train); …
type: L1Loss  →  reduction: mean
    19: train.pixel_opt.type: found nothing; allowed: "CharbonnierLoss", "L1Loss", …
type: calculate_psnr  →  type: psnr
    24: val.metrics.psnr.type: found "psnr"; allowed: "alignment_converges", "calculate_lpips", …
type: calculate_psnr  →  type: [a]
    24: val.metrics.psnr.type: found ["a"]; allowed: …
type: calculate_psnr  →  type: calculate_psnr\n      better: up
    25: val.metrics.psnr.better: found "up"; allowed: "higher" or "lower"
type: calculate_psnr  →  type: calculate_psnr\n      test_y: true
    25: val.metrics.psnr.test_y: found an unknown key (did you mean test_y_channel?); allowed: …
type: L1Loss  →  []
    19: train.pixel_opt: found []; allowed: a mapping
gt_size: 64  →  gt_size: [64]
    7: datasets.train.gt_size: found [64]; allowed: an integer
gt_size: 64  →  io_backend: disk
    7: datasets.train.io_backend: found "disk"; allowed: a mapping
gt_size: 64  →  io_backend: {type: dsik}
    7: datasets.train.io_backend.type: found "dsik"; allowed: "disk" or "lmdb"
gt_size: 64  →  io_backend: {type: disk, tipe: 1}
    7: datasets.train.io_backend.tipe: found an unknown key (did you mean type?); allowed: type
name: small  →  name:
    1: name: found null; allowed: text (in quotes, …
name: small  →  name: [5]
    1: name: found [5]; allowed: text (in quotes, …
name: small  →  name: a/b
    1: name: found "a/b"; allowed: the name of a folder, at most 200 bytes, without slashes
name: small  →  name: ..
    1: name: found ".."; allowed: the name of a folder, at most 200 bytes, without slashes
name: small  →  name: ""
    1: name: found ""; allowed: the name of a folder, at most 200 bytes, without slashes
name: small  →  name: LONG
    1: name: found "ä…
name: small  →  name: s\nnum_gpu: -1
    2: num_gpu: found -1; allowed: greater than or equal to 0
name: small  →  name: s\nmodel_type: X
    2: model_type: found "X"; allowed: "ImageCleanModel"
name: small  →  name: s\npath: 5
    2: path: found 5; allowed: a mapping
name: small  →  name: s\npath: {resume_state: [5]}
    2: path.resume_state: found [5]; allowed: text …
name: small  →  name: s\ncustom_imports: x
    2: custom_imports: found "x"; allowed: a list
name: small  →  name: s\nname: t
    2: name: found again, after line 1; allowed: once
name: small  →  name: s\nmanual_seed: 10000000000000000000
    2: manual_seed: found 10000000000000000000; …
"""
NETWORK = (
    'type, inp_channels, out_channels, dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor, '
    'bias, LayerNorm_type, dual_pixel_task'
)


@pytest.mark.parametrize('case', re.findall(r'(.+)\n    (.+)', MISTAKES), ids='→'.join)
def test_a_mistake_names_line_key_found_and_allowed(load, case):
    old, new = case[0].replace('\\n', '\n').replace('LONG', 'ä' * 150).split('  →  ')
    assert SMALL.count(old) == 1
    mistakes = load(SMALL.replace(old, new))
    message, is_start, _ = f'<file>:{case[1]}'.replace('NETWORK', NETWORK).partition('…')
    assert any(line.startswith(message) if is_start else line == message for line in mistakes), mistakes
    assert all(re.match(r'<file>:\d+: [\w.:]+: found .+; allowed: .+', mistake) for mistake in mistakes)


HINTS = """
total_iter → train.total_iter
total_iters → train.total_iter
lr → train.optim_g.lr
train:lr → train.optim_g.lr
train:print_freq → logger.print_freq
train:TOTAL_ITER →
train:totl_iter → total_iter
train:pixel_opt:loss_wieght → loss_weight
train:loss → losses
train:scheduler:total_iter → train.total_iter
train:scheduler:eta_min → eta_mins
network_g:layernorm_type → LayerNorm_type
network_g:dims → dim
network:type → network_g
datasets:train:batch_size → batch_size_per_gpu
datasets:train:num_workers → num_worker_per_gpu
datasets:train:dataroot → dataroot_
datasets:train:mixup → train.mixing_augs.mixup
dataset → datasets
gt_size → datasets.train.gt_size
crop_border → val.metrics.psnr.crop_border
val:crop_border → val.metrics.psnr.crop_border
qwertz →
train:qwertz →
5 →
"""


@pytest.mark.parametrize('hint', HINTS.strip().split('\n'))
def test_an_unknown_key_comes_with_the_nearest_known_one(load, hint):
    key, _, meant = hint.replace(' ', '').partition('→')
    (mistake,) = load(SMALL, f'{key}=1')
    name = key.replace(':', '.').removesuffix('.type')
    known = f' (did you mean {meant}' if meant else ';'
    assert mistake.startswith(f'--force_yml: {name}: found an unknown key{known}')
    assert not meant or meant.endswith('_') or f'{meant}?); allowed: ' in mistake


def test_all_mistakes_are_reported_in_the_order_of_the_lines(load):
    text = SMALL
    for right, wrong in (
        ('name: small', 'name: [5]'),
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


def test_a_key_named_like_the_type_beside_it_is_unknown(load):
    (mistake,) = load(SMALL, 'network_g:Restormer=5')
    assert mistake.startswith('--force_yml: network_g.Restormer: found an unknown key')
    (mistake,) = load(SMALL, 'val:metrics:calculate_psnr={type: calculate_psnr, crop_border: x}')
    assert mistake == '--force_yml: val.metrics.calculate_psnr.crop_border: found "x"; allowed: an integer'


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


NETWORKS = """
dim: 5, plain: x
dim: 5, plain: ~, depth: ~, kind: b, size: [1, 2], ratio: 2, either: [5]
dim: 5, plain: {a: [1]}, act: relu, norm: x, nothing: 5, wrong: x, copy: no

plain: 1
    dim: found nothing
dim: x, plain: 1
    dim: found "x"; allowed: an integer
dim: ~, plain: 1
    dim: found null; allowed: an integer
dim: 1
    plain: found nothing
dim: 1, plain: 1, depth: x
    depth: found "x"; allowed: an integer
dim: 1, plain: 1, kind: c
    kind: found "c"; allowed: "a" or "b"
dim: 1, plain: 1, size: [1]
    size.1: found nothing
dim: 1, plain: 1, size: 3
    size: found 3; allowed:
dim: 1, plain: 1, ratio: x
    ratio: found "x"; allowed: a number
dim: 1, plain: 1, either: x
    either: found "x"; allowed: an integer or a list
dim: 1, plain: 1, dept: 5
    dept: found an unknown key (did you mean depth?); allowed:
dim: 1, plain: 1, _hidden: 5
    _hidden: found an unknown key
"""


@pytest.mark.parametrize(('networks', 'expected'), cases(NETWORKS))
def test_a_users_architecture_is_checked_by_its_constructor(load, module, networks, expected):
    imports = module(ARCHITECTURE)
    for network in networks:
        found = load(imports + with_network(f'{{type: MyNet, {network}}}'))
        if not expected:
            assert found.network_g.type == 'MyNet'
        else:
            (mistake,) = found
            assert mistake.startswith(f'<file>:10: network_g.{expected[0]}')


def test_a_users_architecture_is_allowed_as_a_type(load, module):
    (mistake,) = load(module(ARCHITECTURE) + with_network('{type: MyNett}'))
    assert mistake == '<file>:10: network_g.type: found "MyNett"; allowed: "MyNet", "Restormer"'


def test_a_users_architecture_gets_the_values_of_the_file(load, module):
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


def test_the_schema_has_a_users_architecture(load, module):
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


def test_users_datasets_losses_and_metrics(load, module):
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
    # The constructor gets all keys that it names, including those of the loader.
    assert registry.DATASET_REGISTRY.build(options.datasets['train']).given == ('lq', 64, 8)
    assert options.datasets['train'].batch_size_per_gpu == 4
    assert options.val.metrics['psnr'].arguments() == {'window': 7}
    mistakes = load(
        text, 'val:metrics:psnr:windw=7', 'train:pixel_opt:loss_weight=x', 'datasets:train:folder=[5]'
    )
    assert [mistake.split(': found')[0] for mistake in mistakes] == [
        '--force_yml: datasets.train.folder',
        '--force_yml: train.pixel_opt.loss_weight',
        '--force_yml: val.metrics.psnr.windw',
    ]
    assert 'did you mean window?' in mistakes[2]


def test_users_optimizers_and_schedulers(load, module):
    imports = module("""
        from basicsr.utils.registry import OPTIMIZER_REGISTRY, SCHEDULER_REGISTRY

        @OPTIMIZER_REGISTRY.register()
        def my_optimizer(params, lr: float, nesterov: bool = False, fused=None):
            return params, lr, nesterov, fused

        @SCHEDULER_REGISTRY.register()
        class Constant:
            def __init__(self, factor: float = 1.0): ...
    """)
    settings = [
        'train:optim_g:type=my_optimizer',
        'train:optim_g:nesterov=true',
        'train:scheduler={type: Constant}',
    ]
    train = load(imports + SMALL, *settings).train
    assert registry.OPTIMIZER_REGISTRY.build(train.optim_g, 'weights', fused=True) == (
        'weights',
        3e-4,
        True,
        True,
    )
    (mistake,) = load(imports + SMALL, *settings, 'train:scheduler:factr=2')
    assert mistake.startswith(
        '--force_yml: train.scheduler.factr: found an unknown key (did you mean factor?); '
    )


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
def test_failed_imports_are_reported(load, module, source, said):
    imports = 'custom_imports: [not_there]\n' if source is None else module(source)
    mistakes = load(imports + SMALL, 'name=[5]')
    assert len(mistakes) == 2 and mistakes[0].startswith('--force_yml: name: found [5]; ')
    assert re.match(r'<file>:1: custom_imports\.0: found "\w+", whose import fails \(', mistakes[1])
    assert said in mistakes[1] and '; allowed: modules that can be imported' in mistakes[1]


@pytest.mark.parametrize('name', ['', '.', '.relative', 'a..b', '5', 'é'])
def test_names_that_are_no_modules_are_refused(load, name):
    (mistake,) = load(SMALL, f'custom_imports=["{name}"]')
    assert mistake.startswith(f'--force_yml: custom_imports.0: found "{name}", whose import fails (')


# ------------------------------------------------------------------ the schema


def shape(schema, root):
    """Definition → keys, required keys, whether others are allowed."""
    sections = {'': schema, **root['$defs']}
    return {
        name: (
            sorted(section.get('properties', ())),
            sorted(section.get('required', ())),
            section.get('patternProperties'),
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


@pytest.mark.parametrize('path', OPTION_FILES, ids=lambda path: path.stem)
def test_every_key_of_the_option_files_is_in_the_schema(path):
    root = json.loads((ROOT / 'options' / 'schema.json').read_text())

    def check(data, schema, key):
        for member in schema.get('anyOf', ()):
            schema = {**schema, **member}
        reference = schema.get('discriminator', {}).get('mapping', {}).get(data.get('type'), schema.get('$ref'))
        if reference:
            schema = root['$defs'][reference.removeprefix('#/$defs/')]
        assert set(schema.get('required', ())) <= set(data), key
        for name, value in data.items():
            here = schema.get('properties', {}).get(name, schema.get('additionalProperties'))
            assert here, (*key, name)
            if isinstance(value, dict) and here is not True:
                check(value, here, (*key, name))

    check(yaml.safe_load(path.read_text()), root, ())
    modeline = re.match(r'# yaml-language-server: \$schema=(\S+)\n', path.read_text())
    assert (path.parent / modeline[1]).resolve() == ROOT / 'options' / 'schema.json'


def test_the_schema_allows_keys_for_anchors():
    schema = json_schema()
    assert schema['additionalProperties'] is False
    (pattern,) = schema['patternProperties']
    assert re.search(pattern, 'x-common') and not re.search(pattern, 'ax-b')


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
