"""YAML with line numbers, and --force_yml."""

from __future__ import annotations

import pytest
from option_texts import SMALL, cases

from basicsr.options.load import read_options
from basicsr.utils.errors import OptionError


@pytest.mark.parametrize(
    ('written', 'meant'),
    [
        *(('3e-4', 3e-4), ('3E-4', 3e-4), ('!!float 3e-4', 3e-4), ('+1e+0', 1.0), ('.5', 0.5), ('1.', 1.0)),
        *(('1.5e-3', 1.5e-3), ('0.0003', 3e-4), ('1', 1.0), ('0x10', 16.0), ('1_000', 1000.0)),
    ],
)
def test_numbers(load, written, meant):
    assert load(SMALL, f'train:optim_g:lr={written}').train.optim_g.lr == meant
    assert load(SMALL.replace('3e-4', written)).train.optim_g.lr == meant


@pytest.mark.parametrize('written', ['4000', '4e3', '!!float 4e3', '4000.0', '4.0e+3', '!!int "4000"'])
def test_whole_floats_become_integers(load, written):
    for options in (load(SMALL, f'val:val_freq={written}'), load(SMALL + f'  save_checkpoint_freq: {written}')):
        values = {options.val.val_freq, options.logger.save_checkpoint_freq}
        assert 4000 in values and all(type(value) is int for value in values)
    options = load(SMALL, f'datasets:train:iters=[5, {written}]', f'val:metrics:psnr:crop_border={written}')
    for value in (*options.datasets['train'].iters, options.val.metrics['psnr'].crop_border):
        assert value in (5, 4000) and type(value) is int


@pytest.mark.parametrize(
    'name', ['1:30', '010', '2024-01-01', '12:30:45', '=', 'a=b', 'a:b', '~x', 'é', '1e', '00']
)
def test_text_that_looks_like_a_number_stays_text(load, name):
    assert load(SMALL, f'name={name}').name == name


def test_yaml_merges(load):
    text = SMALL.replace('  train:\n', '  train: &train\n').replace(
        'network_g:\n', '  val:\n    <<: *train\n    dataroot_gt: other\nnetwork_g:\n'
    )
    datasets = load(text).datasets
    assert (datasets['val'].dataroot_gt, datasets['val'].dataroot_lq) == ('other', 'lq')
    assert datasets['train'].dataroot_gt == 'gt'
    mistake = load(text.replace('dataroot_gt: other', 'dataroot: other'))[0]
    assert mistake.startswith('<file>:11: datasets.val.dataroot:')


@pytest.mark.parametrize(
    'text', ['20240131', '1e5', '007', '1.50', 'true', 'no', '0x1F', '-1', '.inf', '1_000']
)
def test_a_number_is_text_as_written_where_the_key_takes_text(load, text):
    for options in (
        load(SMALL, f'name={text}', f'datasets:train:dataroot_gt={text}'),
        load(SMALL.replace('small', text).replace('gt: gt', f'gt: {text}  # comment')),
    ):
        assert (options.name, options.datasets['train'].dataroot_gt) == (text, text)
    assert load(SMALL, 'path:resume_state=~').path.resume_state is None


def test_top_level_keys_that_begin_with_x_only_hold_anchors(load):
    text = 'x-common: &common {type: Adam, lr: 1e-4}\nx-5: {lr: 1, lr: 2, any: [thing]}\n' + SMALL.replace(
        '{type: AdamW, lr: 3e-4}', '\n    <<: *common\n    lr: 2e-4'
    )
    options = load(text)
    assert (options.train.optim_g.type, options.train.optim_g.lr) == ('Adam', 2e-4)
    assert not any(name.startswith('x-') for name in options.model_dump())
    (mistake,) = load(text.replace('x-5', 'x5'))[1:]
    assert mistake.startswith('<file>:2: x5: found an unknown key')


SPACED = r"""
name:\tx
name: x\t
name: x\t \t# comment
name:\t x \t
"name"\t: 'x'\t# comment
name: x\n\t
name: x\n \t# comment
name:\tx\n\t\nscale:\t1
"""


@pytest.mark.parametrize('name', SPACED.strip().split('\n'))
def test_tabs_separate_like_spaces(load, name):
    text = SMALL.replace('name: small', name.encode().decode('unicode_escape'))
    assert load(text).name == 'x'
    options = load(text.replace('{type: AdamW, lr: 3e-4}', '{type:\tAdamW\t,\n\tlr: 3e-4\t}\t# comment'))
    assert options.train.optim_g.lr == 3e-4


def test_text_keeps_its_tabs(load):
    for text in ("'a\tb'", 'a\tb', '"a\\tb"'):
        options = load(SMALL.replace('dataroot_gt: gt', f'dataroot_gt: {text}'))
        assert options.datasets['train'].dataroot_gt == 'a\tb'


# ------------------------------------------------------------------ files that are no option files

UNREADABLE = r"""
# nothing
~
    <file>: found nothing; allowed: a mapping
5
    <file>: found 5; allowed: a mapping
- a\n- b\n
    <file>: found ["a", "b"]; allowed: a mapping
name: a: b
name: *nothing
name: "\ud800"
"\ud800": 5
name: !!python/object/apply:os.system ["echo hacked"]
name: !!python/name:os.system
name: !mine {a: 1}
name: !!binary aGVsbG8=
name: !!timestamp 2024-01-01
name: !!set {a, b}
name: !!omap [a: 1]
name: !!bool maybe
name: !!int ""
name: !!float x
name: !!str {a: 1}
? [a, b]\n: 5
<<: 5
a: &a [*a]
    <file>:1: is not valid YAML
name: x\n---\nname: y\n
    <file>:2: is not valid YAML
name: [1, 2\n
    <file>:1: is not valid YAML: the bracket [
&a a: *a
a: &a {<<: *a}
    <file>
"""
ALIASES = 'a: &a [x, x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{name}: &{name} [{", ".join([f"*{before}"] * 10)}]\n'
    for before, name in zip('abcdefghij', 'bcdefghijk', strict=True)
)
LONG = [
    ('', '<file>: found nothing; allowed: a mapping'),
    ('name: x\n\tval: 5\n', '<file>:2: is not valid YAML'),
    ('name: \x00\n', '<file>: found NUL bytes'),
    ('name: x\nscale: \x01\n', '<file>:2: is not valid YAML: the character "\\u0001"'),
    (f'name: {"9" * 5000}\n', '<file>:1: is not valid YAML'),
    (f'name: 0x{"f" * 5000}\n', '<file>:1: is not valid YAML'),
    (f'name: {"[" * 600}{"]" * 600}\n', '<file>: is not valid YAML'),
    (f'name: {"[" * 40}{"]" * 40}\n', '<file>:1: is not valid YAML'),
    (ALIASES, '<file>:'),
]


@pytest.mark.parametrize(
    ('text', 'start'),
    [*LONG, *((text, expected[0]) for texts, expected in cases(UNREADABLE) for text in texts)],
    ids=lambda value: value[:24],
)
def test_unreadable_text_is_refused(load, text, start, capfd):
    assert load(text)[0].startswith(start)
    assert 'hacked' not in capfd.readouterr().out


@pytest.mark.parametrize(
    ('encoding', 'found'),
    [
        *((encoding, ': found NUL bytes, as in UTF-16') for encoding in ('utf-16', 'utf-16-le', 'utf-32')),
        *(('latin-1', ':3: found the byte 0xe9'), ('gbk', ':3: found the byte 0xa8')),
    ],
)
def test_a_file_that_is_not_utf_8_is_refused_with_its_line(tmp_path, encoding, found):
    path = tmp_path / 'options.yml'
    text = SMALL.replace('datasets:', '# \ndatasets:  # é')
    path.write_bytes(text.encode(encoding))
    with pytest.raises(OptionError) as caught:
        read_options(path)
    assert str(caught.value).startswith(f'{path}{found}')
    path.write_bytes(text.encode('utf-8-sig'))
    assert read_options(path).name == 'small'


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(OptionError, match=r'options\.yml: cannot be read as an option file: '):
        read_options(tmp_path / 'options.yml')
    with pytest.raises(OptionError, match='cannot be read as an option file: Is a directory'):
        read_options(tmp_path)
    with pytest.raises(OptionError, match='cannot be read as an option file: '):
        read_options('a\0b')


# ------------------------------------------------------------------ --force_yml


@pytest.mark.parametrize(
    ('setting', 'value'),
    [
        ('name=other', 'other'),
        ('train:total_iter=5', 5),
        ('train:optim_g:betas=[0.5, 0.9]', [0.5, 0.9]),
        ('train:use_grad_clip=false', False),
        ('logger:keep_last=~', None),
        ('logger:keep_last=', None),
        ('logger:keep_last=null', None),
        ('path:pretrain_network_g=C:/a=b.pth', 'C:/a=b.pth'),
        ('path:pretrain_network_g==', '='),
        ('path:pretrain_network_g="5"', '5'),
        ('path:resume_state=x/y z.state', 'x/y z.state'),
        ('dist_params:port=1234', 1234),
        ('val:metrics:ssim:type=calculate_ssim', 'calculate_ssim'),
        ('network_g:heads=[1,2,4,8]', [1, 2, 4, 8]),
        ('train:scheduler:periods:0=120', [120]),
        ('val:metrics={}', {}),
        (' train:total_iter = 7 ', 7),
    ],
)
def test_force_yml_sets_a_value(load, setting, value):
    options = load(SMALL, setting)
    for name in setting.partition('=')[0].replace(':0', '').strip().split(':'):
        options = options[name] if isinstance(options, dict) else getattr(options, name)
    assert options == value


def test_force_yml_settings_apply_in_order(load):
    options = load(SMALL, 'val:metrics={}', 'val:metrics:a:type=calculate_ssim', 'name=x', 'name=y')
    assert (list(options.val.metrics), options.name) == (['a'], 'y')


def test_force_yml_fills_a_null_section(load):
    assert load(SMALL + 'path:\n', 'path:strict_load_g=false').path.strict_load_g is False


MISTAKES = r"""
train
=5
train:=5
train::total_iter=5
    found "SETTING"; allowed: KEY:SUBKEY=VALUE
name:x=5
    name.x: found "small" at name; allowed: a mapping there
train:total_iter:x:y=5
    train.total_iter.x.y: found 100 at train.total_iter; allowed: a
train:total_iter=[5
    train.total_iter: "[5": is not valid YAML:
train:total_iter=!!python/object/apply:os.getcwd []
    train.total_iter: "!!python
train:total_iter=__import__("os")
    train.total_iter: found "__import__(\"os\")"; allowed: an
train:scheduler:periods:0=x
    train.scheduler.periods.0: found "x"; allowed: an integer
train:scheduler:periods:1=5
    train.scheduler.periods.1: found [100] at train.scheduler.periods; allowed: a place in the list, from 0 to 0
train:scheduler:periods:x=5
    train.scheduler.periods.x: found [100] at
train:scheduler:periods:-1=5
    train.scheduler.periods.-1: found [100] at
train:scheduler:periods:0:z=5
    train.scheduler.periods.0.z: found 100 at
network_g:heads=[1, x]
    network_g.heads.1: found "x"; allowed: an integer
train:optim_g={lr: 1}
    train.optim_g.type: found nothing; allowed: "Adam", "AdamW", "Muon"
train:optim_g={type: Adam, lr: 1, lr: 2}
    train.optim_g.lr: found again,
trian:total_iter=5
    trian: found an unknown key (did you mean train?); allowed:
train.total_iter=5
train.optim_g:lr=5
datasets:train.gt_size=5
    found "SETTING"; allowed: COLONS (colons between the keys)
datasets:train.gt_size:x=5
    datasets.train.gt_size.type: found nothing; allowed:
x-common:lr=5
    found "SETTING"; allowed: keys outside x-common
"""


@pytest.mark.parametrize(
    ('setting', 'start'),
    [
        ('', 'found ""; allowed: '),
        *((each, start) for each_of, (start,) in cases(MISTAKES) for each in each_of),
    ],
)
def test_force_yml_mistakes_name_the_key(load, setting, start):
    (mistake,) = load(SMALL, setting)
    start = start.replace('SETTING', setting).replace('COLONS', setting.replace('.', ':'))
    assert mistake.startswith(f'--force_yml: {start}')


def test_a_mistake_beside_a_forced_key_has_the_line_of_the_file(load):
    (mistake,) = load(SMALL.replace('lr: 3e-4', 'lr: x'), 'train:optim_g:eps=1e-7')
    assert mistake.startswith('<file>:18: train.optim_g.lr: ')


def test_loading_changes_neither_its_arguments_nor_a_second_load(load):
    settings = ['val:metrics:psnr:crop_border=4', 'train:optim_g:betas=[0.5, 0.5]']
    kept = list(settings)
    once = load(SMALL, *settings)
    assert settings == kept
    assert load(SMALL, *settings) == once
    assert load(SMALL).train.optim_g.betas == [0.9, 0.999]
