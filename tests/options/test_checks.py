"""Mistakes that take more than one key, the files that a key names, or a constructor."""

from __future__ import annotations

import copy
import random
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from option_texts import cases

from basicsr.options import checks
from basicsr.options.load import read_options
from basicsr.utils import files
from basicsr.utils.cli import exit_status, run
from basicsr.utils.errors import OptionError
from basicsr.utils.logger import get_logger

ROOT = Path(__file__).resolve().parents[2]
DUMPER = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)  # the same, faster
PUBLISHED = ROOT / 'options' / 'Deblurring_Restormer.yml'


def write_pairs(folder, count=8, lq='{}', suffix='.png'):
    for kind, name in (('lq', lq), ('gt', '{}')):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            cv2.imwrite(str(folder / kind / f'{name.format(index)}{suffix}'), np.zeros((8, 9, 3), np.uint8))
    return {'dataroot_lq': str(folder / 'lq'), 'dataroot_gt': str(folder / 'gt')}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp('pairs'))


@pytest.fixture
def published(pairs):
    """The content of the published file, on images that are there, with a network that is made quickly. There are
    too few of them for what eight GPUs take in a step."""
    content = yaml.safe_load(PUBLISHED.read_text())
    content['train']['accumulate'] = 1
    for phase in ('train', 'val'):
        content['datasets'][phase].update(pairs)
    content['network_g'].update(dim=8, num_blocks=[0] * 4, num_refinement_blocks=0, heads=[1] * 4)
    return content


@pytest.fixture
def check(tmp_path):
    """Mistakes of a content, without the name of the file and its lines; [] if there are none."""
    path = tmp_path / 'options.yml'

    def check(content, *settings, purpose='train', world_size=1):
        path.write_text(yaml.dump(content, Dumper=DUMPER, sort_keys=False))
        try:
            options = read_options(path, list(settings), purpose, world_size)
        except OptionError as error:
            assert error.mistakes and str(error) == '\n'.join(error.mistakes)
            return [
                re.sub(rf'^({re.escape(str(path))}(:\d+)?|--force_yml): ', '', line) for line in error.mistakes
            ]
        assert options.name
        return []

    return check


def test_the_published_file_has_no_mistake_where_its_data_exist(check, published):
    assert check(published) == []


# ------------------------------------------------------------------ the newcomer


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """A repository without data and weights; returns the mistakes of one of its files."""
    monkeypatch.setattr(files, 'ROOT', tmp_path)
    monkeypatch.setattr(checks, 'ROOT', tmp_path)

    def no_data(name, purpose='train'):
        with pytest.raises(OptionError) as caught:
            read_options(ROOT / 'options' / name, [], purpose)
        assert not (tmp_path / 'experiments').exists()
        return caught.value.mistakes

    return no_data


def test_without_the_data_one_sentence_tells_what_to_do(no_data, capfd):
    (found,) = no_data('Deblurring_Restormer.yml')
    assert found.startswith(
        f'{PUBLISHED}:18: datasets.train.dataroot_gt: found "./Motion_Deblurring/Datasets/train/'
    )
    assert (
        'the GoPro data, which python Motion_Deblurring/download_data.py gets, and Motion_Deblurring/' in found
    )
    assert 'python scripts/synthesize_blur.py, then ' in found
    assert 'python basicsr/train.py -opt options/Deblurring_Restormer_quickstart.yml' in found
    for key in ('datasets.train.dataroot_lq', 'datasets.val.dataroot_gt', 'datasets.val.dataroot_lq'):
        assert found.count(key) == 1
    assert '. ' not in found and '\n' not in found
    # As a program reports it:
    assert exit_status(lambda: read_options(PUBLISHED, [], 'train')) == 2
    output = ''.join(capfd.readouterr())
    assert '1 mistake in the options' in output and found in output and 'Traceback' not in output


@pytest.mark.parametrize('name', ['GoPro', 'HIDE', 'RealBlur_J', 'RealBlur_R'])
def test_without_data_or_weights_test_files_tell_where_to_get_them(no_data, name):
    data, weights = no_data(f'test/Deblurring_{name}.yml', 'test')
    assert f'the {name} data, which python Motion_Deblurring/download_data.py gets' in data
    assert 'quickstart' not in data
    assert 'path.pretrain_network_g: found ' in weights
    assert 'python Motion_Deblurring/download_data.py --data weights downloads' in weights


def test_without_its_data_the_quickstart_tells_how_to_make_them(no_data):
    (found,) = no_data('Deblurring_Restormer_quickstart.yml')
    assert found.endswith('; allowed: the pairs that python scripts/synthesize_blur.py makes')


def test_weights_outside_a_tasks_folder_have_no_hint(check, published):
    (found,) = check(published, 'path:pretrain_network_g=a/pretrained_models/motion_deblurring.pth')
    assert found.endswith('which is not an existing file; allowed: a file, or ~ for none')


@pytest.mark.parametrize('purpose', ['train', 'test'])
@pytest.mark.parametrize('kind', ['published', 'noisy'])
def test_options_without_effect_are_named(check, request, kind, caplog, monkeypatch, purpose):
    content = request.getfixturevalue(kind)
    monkeypatch.setattr(get_logger(), 'propagate', False)  # as on the command line
    get_logger().addHandler(caplog.handler)
    settings = ['scale=4', 'path:pretrain_network_g=README.md']
    del content['val']['rgb2bgr']
    assert check(content, *settings, 'val:rgb2bgr=false', purpose=purpose) == []
    get_logger().removeHandler(caplog.handler)
    (line,) = caplog.messages
    head, _, names = line.partition(': ')
    ignored = {'datasets.train.prefetch_mode', 'logger.wandb', 'scale', 'val.max_minibatch', 'val.rgb2bgr'}
    if kind == 'noisy':
        ignored |= {'datasets.train.dataroot_lq', 'datasets.train.filename_tmpl', 'datasets.val.dataroot_lq'}
    assert head == 'These options have no effect here' and sorted(names.split(', ')) == sorted(ignored)


# ------------------------------------------------------------------ one mistake


# Settings, and the start of every mistake.
CASES = r"""
datasets:train:iters=[300000]
    datasets.train.iters: found stages of different number, 6 in mini_batch_sizes, 6 in gt_sizes, 1 in iters;
datasets:train:gt_sizes=[128]
    datasets.train.gt_sizes: found stages of different number
datasets:train:gt_sizes=~
    datasets.train.gt_sizes: found nothing; allowed: a list, as there is mini
datasets:train:gt_sizes=[] | datasets:train:iters=[] | datasets:train:mini_batch_sizes=[]
    datasets.train.mini_batch_sizes: found no stage;
    datasets.train.gt_sizes: found no stage;
    datasets.train.iters: found no stage;
datasets:train:gt_size=320
    datasets.train.gt_sizes.5: found 384; allowed: at most gt_size, 320
datasets:train:batch_size_per_gpu=4
    datasets.train.mini_batch_sizes.0: found 8; allowed: at most batch
    datasets.train.mini_batch_sizes.1: found 5; allowed: at most batch
datasets:train:gt_sizes=[128, 161, 192, 256, 320, 384]
    datasets.train.gt_sizes.1: found 161; allowed: a multiple of 8, for Restormer
datasets:train:gt_sizes=~ | datasets:train:iters=~ | datasets:train:mini_batch_sizes=~
datasets:train:gt_size=100
    datasets.train.gt_size: found 100; allowed: a multiple of 8, for Restormer
datasets:train:gt_sizes=~ | datasets:train:iters=~ | datasets:train:mini_batch_sizes=~

datasets:train:iters=[5, 5, 5, 5, 5, x]
    datasets.train.iters.5: found "x"; allowed: an integer
datasets:train:iters=abc
    datasets.train.iters: found "abc"; allowed: a list
train:total_iter=300001
    datasets.train.iters: found a sum of 300000; allowed: at least train.total_iter, 300001
    train.scheduler.periods: found a sum of 300000; allowed: at least train.total_iter, 300001
train:total_iter=5

datasets:train:gt_size=~
    datasets.train.gt_size: found nothing; allowed: a value, to train
datasets:train:batch_size_per_gpu=~
    datasets.train.batch_size_per_gpu: found nothing; allowed: a v
datasets:train:dataroot_gt=~
    datasets.train.dataroot_gt: found nothing; allowed: a value, to train
train:scheduler:restart_weights=[1]
    train.scheduler.restart_weights: found [1.0]; allowed: 2 numbers
train:scheduler:eta_mins=[1, -1]
    train.scheduler.eta_mins: found [1.0, -1.0]; allowed: 2 numbers
train:scheduler:periods=[]
    train.scheduler.periods: found []; allowed: numbers above 0
train:scheduler={type: LinearLR, total_iter: 5}
    train.scheduler.total_iter: found 5; allowed: at least train.total_iter, 300000
train:scheduler={type: MultiStepLR, milestones: [5, 10]}

train:scheduler={type: MultiStepLR, milestones: [5, 3]}
    train.scheduler.milestones: found [5, 3]; allow
train:scheduler={type: CosineAnnealingRestartLR, periods: [300000.0]}

datasets={}
    datasets.train: found nothing; allowed: a training set
datasets=[]
    datasets: found []; allowed: a mapping
datasets=~
    datasets.train: found nothing; allowed: a training set
datasets:train=~
    datasets.train: found only val; allowed: a training set
datasets:val=~

logger=~ | path=~ | dist_params=~ | val:metrics=~ | train:mixing_augs=~ | train:losses=~ | custom_imports=~

datasets:train:io_backend=~ | network_g:num_blocks=~ | val:metrics:psnr=~

datasets:train=5
    datasets.train: found 5; allowed: a mapping
datasets:val:type=5
    datasets.val.type: found 5; allowed: "Dataset_DefocusDeblur_DualPixel_16bit", "Dataset_GaussianDenoising", "Dataset_
datasets:train:dataroot_lq=no/where
    datasets.train.dataroot_lq: found "no/where", which is not an existing fol
datasets:val:dataroot_gt=~nobody_at_all/x
    datasets.val.dataroot_gt: found "~nobody_at_all/x", which is not
datasets:val:dataroot_gt="\0"
    datasets.val.dataroot_gt: found "\u0000", which is not an existing folder
datasets:val:meta_info_file=no.txt
    datasets.val.meta_info_file: found "no.txt", which is not an existing file;
datasets:val:filename_tmpl=x
    datasets.val.filename_tmpl: found 'x'; allowed: a name with one
datasets:val:filename_tmpl="{}_blur"
    datasets.val: found a mistake in the files: 8 images have no
datasets:val:io_backend:type=lmdb
    datasets.val: found a mistake in the files:
datasets:val:channels=2
    datasets.val.channels: found 2; allowed: 1 or 3
datasets:train:mini_batch_sizes=[9, 5, 4, 2, 1, 1] | datasets:train:batch_size_per_gpu=9
    datasets.train: found a set of 8 samples; allowed: at least one batch, 9; lower batch_size_per_gpu
datasets:train:mini_batch_sizes=[9, 5, 4, 2, 1, 1] | datasets:train:batch_size_per_gpu=9
datasets:train:dataset_enlarge_ratio=2

datasets:train:num_worker_per_gpu=x | datasets:train:filename_tmpl="{}x"
    datasets.train.num
    datasets.train: found a mistake in
datasets:train:dataset_enlarge_ratio=0.5 | datasets:train:batch_size_per_gpu=9
    datasets.train.dataset_enlarge_ratio: found 0.5; allowed: an integer
datasets:train:iters=x | train:activation_checkpointing=[true, false]
    datasets.train.iters: found "x"; allowed: a list
val:tile=x | val:tile_overlap=8
    val.tile: found "x"; allowed: an integer
name=a/b | datasets:train:type=Foo | train:scheduler:periods=[5] | train:pixel_opt:reduction=none
    name: found "a/b"
    datasets.train.type: found "Foo"
    train.scheduler.restart_weights: found [1.0, 1.0]; allowed: 1
    train.pixel_opt.reduction: found "none"
datasets:val:name=""
    datasets.val.name: found ""; allowed: the name of a folder
datasets:val:name=a/b
    datasets.val.name: found "a/b"; allowed: the name of a folder
datasets:val:name=..
    datasets.val.name: found ".."; allowed: the name of a folder
datasets:other={type: Dataset_PairedImage, dataroot_lq: ".", name: ValSet}
    datasets.other: found a mistake in the files:
    datasets.other.name: found "ValSet", as the name of datasets.val;
network_g:dim=13
    network_g.dim: found 13; allowed: an even number of channels
network_g:dim=-4
    network_g.dim: found -4; allowed: an even number of channels
network_g:heads=[1, 2, 4]
    network_g.heads: found [1, 2, 4]; allowed: four numbers
network_g:heads=[3, 1, 1, 1]
    network_g.heads: found 3 at level 1; allowed: a divisor of
network_g:ffn_expansion_factor=-1 | network_g:num_blocks=[1,1,1,1]
    network_g: found values that do not work (
network_g:inp_channels=1
    network_g.out_channels: found 3 for 1 input channels; allowed: the same number
network_g:inp_channels=6 | network_g:dual_pixel_task=true
    network_g.inp_channels: found 6; allowed: 3, the channels of datasets.train
network_g:inp_channels=1 | network_g:out_channels=1
    network_g.inp_channels: found 1; allowed: 3, the channels of datasets.train
    network_g.out_channels: found 1; allowed: 3, the channels of datasets.train
datasets:val:channels=1
    network_g.inp_channels: found 3; allowed: 1, the channels of datasets.val
    network_g.out_channels: found 3; allowed: 1, the channels of datasets.val
datasets:train:channels=1 | datasets:val:channels=1 | network_g:inp_channels=1 | network_g:out_channels=1

network_g=~
    network_g.type: found nothing; allowed: "Restormer"
train:accumulate=0
    train.accumulate: found 0; allowed: greater than or equal to 1 or "auto"
train:accumulate=some
    train.accumulate: found "some"; allowed: an integer or "auto"
train:activation_checkpointing=[true, false]
    train.activation_checkpointing: found 2 items; allowed: true, false, or a list with one for each stage, 6
train:activation_checkpointing=[true, true, false, false, false, false]

train:precision=fp8
    train.precision: found "fp8"; allowed: "fp32", "bf16", "fp16" or "fp64"
train:precision=fp16

train:precision=fp16 | num_gpu=0
    train.precision: found "fp16" on the CPU
train:pixel_opt:reduction=none
    train.pixel_opt.reduction: found "none"; allowed: "mean" or "sum"
train:pixel_opt={type: CharbonnierLoss, eps: 0}
    train.pixel_opt.eps: found 0.0; allowed: above 0
train:pixel_opt={type: PSNRLoss, reduction: sum}
    train.pixel_opt.reduction: found "sum"; allowed: "mean"
train:pixel_opt={type: PSNRLoss, toY: true}

train:pixel_opt=~
    train.pixel_opt: found nothing; allowed: a loss, here or in train.losses
train:pixel_opt=~ | train:losses={}
    train.pixel_opt: found nothing; allowed: a loss, here or in train.losses
train:pixel_opt=~ | train:losses={smooth: {type: CharbonnierLoss}}

train:losses={smooth: {type: CharbonnierLoss}, psnr: {type: PSNRLoss, loss_weight: 0.5}}

train:pixel_opt=~ | train:losses=5
    train.losses: found 5; allowed: a mapping
train:pixel_opt=~ | train:losses={smooth: {typ: L1Loss}}
    train.losses.smooth.typ: found an unknown key (did you mean type?); allowed: type
train:pixel_opt=~ | train:losses={smooth: ~}
    train.pixel_opt: found nothing; allowed: a loss, here or in train.losses
train:scheduler=~ | train:optim_g=~
    train.scheduler.type: found nothing; allowed: "Cos
    train.optim_g.type: found nothing; allowed: "Adam"
train:losses={pixel_opt: {type: L1Loss}}
    train.losses.pixel_opt: found a loss called "pixel_opt"; allowed: another name than
train:pixel_opt:reduction=none
train:losses={smooth: {type: CharbonnierLoss, eps: 0}, sum: {type: L1Loss, reduction: none}}
    train.pixel_opt.reduction: found "none"; allowed: "mean" or "sum"
    train.losses.smooth.eps: found 0.0; allowed: above 0
    train.losses.sum.reduction: found "none"; allowed: "mean" or "sum"
val:window_size=12
    val.window_size: found 12; allowed: a multiple of 8, for Restormer
val:window_size=16

val:tlc=true | val:tlc=256 | val:tlc=100
    val.tlc: found 100; allowed: a window of a positive multiple of 8
val:tile=256 | val:tile_overlap=0

val:tile=100
    val.tile: found 100; allowed: a positive multiple of 8
val:tile=64 | val:tile_overlap=64
    val.tile_overlap: found 64; allowed: 0 to 63, less than the tile
val:metrics:psnr:crop_border=-1
    val.metrics.psnr.crop_border: found -1; allowed: 0 to less
val:metrics:psnr:crop_border=1000

val:metrics:psnr:test_y_channel=true

val:metrics:psnr:data_range=0
    val.metrics.psnr.data_range: found an unknown key; allowed: type, better, crop_border, test_y_channel
val:metrics:psnr:input_order=CHW
    val.metrics.psnr.input_order: found an unknown key
val:metrics:s={type: calculate_ssim} | val:metrics:t={type: calculate_ssim_3d} | val:use_image=false

val:metrics:name={type: calculate_ssim}
    val.metrics.name: found a metric called "name"; allowed: another
val:metrics={}

datasets:train:dataroot_gt='' | datasets:val:dataroot_lq=''
    datasets.train.dataroot_gt: found "", which is not an existing folder (as for datasets.val.dataroot_lq); al
path:pretrain_network_g=no.pth
    path.pretrain_network_g: found "no.pth", which is not an existing file; allowed: a
path:resume_state=/
    path.resume_state: found "/", which is not an existing file; allowed: a file, or ~ for none
train=~
    train: found nothing; allowed: the options of training
train={}
    train.total_iter: found nothing
    train.scheduler: found nothing
    train.optim_g: found nothing
val=[] | logger=5 | path=x | dist_params=1
    path:
    val:
    logger:
    dist_params:
"""


@pytest.mark.parametrize(('settings', 'expected'), cases(CASES), ids=str)
def test_mistakes(check, published, settings, expected):
    found = check(published, *settings)
    assert len(found) == len(expected), found
    for start in expected:
        assert any(line.startswith(start) for line in found), found
    assert all(re.search(r': found .+; allowed: .+', line, re.DOTALL) for line in found)


def test_names_too_long_for_a_file_system(check, published):
    found = check(
        published,
        f'datasets:val:name={"ä" * 150}',
        f'datasets:val:dataroot_gt={"x" * 300}',
    )
    assert [line.partition(':')[0] for line in found] == [
        'datasets.val.name',
        'datasets.val.dataroot_gt',
    ]
    assert all(len(line) < 250 for line in found)


def test_luma_of_grey_images_is_refused_in_every_loss_and_metric(check, published):
    data = [f'datasets:{phase}:channels=1' for phase in ('train', 'val')]
    grey = [*data, 'network_g:inp_channels=1', 'network_g:out_channels=1']
    luma = ['val:metrics:psnr:test_y_channel=true', 'train:pixel_opt={type: PSNRLoss, toY: true}']
    found = check(published, *grey, *luma, 'train:losses:second={type: PSNRLoss, toY: true}')
    assert sorted(line.partition(';')[0] for line in found) == [
        'train.losses.second.toY: found true',
        'train.pixel_opt.toY: found true',
        'val.metrics.psnr.test_y_channel: found images of shape (176, 184, 1)',
    ]
    assert all('as datasets.train has 1 channel' in line for line in found if 'toY' in line)


def test_the_training_set_has_a_batch_for_all_processes(check, published):
    """8 samples: one batch of 8 for one process."""
    assert check(published, world_size=1) == []
    (found,) = check(published, world_size=2)
    assert found.startswith(
        'datasets.train: found a set of 8 samples; allowed: at least one batch, 16 (2 micro-batches of 8)'
    )
    assert check(published, 'datasets:train:dataset_enlarge_ratio=2', world_size=2) == []


def test_training_and_testing_need_different_keys(check, published, pairs, tmp_path):
    weights = tmp_path / 'net.pth'
    weights.write_bytes(b'')
    assert check(published, f'path:pretrain_network_g={weights}', purpose='test') == []
    (found,) = check(published, purpose='test')
    assert found == 'path.pretrain_network_g: found nothing; allowed: the file of the weights to test'
    settings = [f'path:pretrain_network_g={weights}', 'datasets:train:dataroot_lq=nowhere']
    assert check(published, *settings, purpose='test') == []
    short = {name: published[name] for name in ('name', 'network_g')} | {
        'path': {'pretrain_network_g': str(weights)}
    }
    test_set = {'type': 'Dataset_PairedImage', 'dataroot_lq': pairs['dataroot_lq']}
    assert check(short | {'datasets': {'test': test_set}}, purpose='test') == []
    (found,) = check(short | {'datasets': {'train': test_set}}, purpose='test')
    assert found == 'datasets: found no set to test on; allowed: one of any name but train'
    found = check(short | {'datasets': {'test': test_set}})
    assert [line.partition(':')[0] for line in found] == ['train', 'datasets.train']
    (found,) = check(short | {'datasets': {'test': {**test_set, 'dataroot_lq': 'no'}}}, purpose='test')
    assert found.startswith('datasets.test.dataroot_lq: found "no", which is not an existing folder; allowed: ')


def test_images_without_partners_are_named(check, published, tmp_path):
    data = write_pairs(tmp_path / 'uneven')
    (tmp_path / 'uneven' / 'gt' / '3.png').unlink()
    published['datasets']['val'].update(data)
    (found,) = check(published)
    assert found.startswith('datasets.val: found a mistake in the files: 1 image has no partner')
    assert 'lq/3.png' in found and found.endswith('; allowed: images that can be used')
    published['datasets']['val'].update(write_pairs(tmp_path / 'none', count=0))
    (found,) = check(published)
    assert 'contains no images' in found
    published['datasets']['val'].update(write_pairs(tmp_path / 'named', lq='{}_blur'), filename_tmpl='{}_blur')
    assert check(published) == []


def test_images_are_not_decoded_to_be_counted(check, published, tmp_path):
    data = write_pairs(tmp_path / 'broken')
    (tmp_path / 'broken' / 'lq' / '3.png').write_bytes(b'no image')
    published['datasets']['val'].update(data, in_memory=True)
    assert check(published) == []


def test_all_mistakes_are_reported_in_the_order_of_the_lines(check, published):
    published['datasets']['train'].update(gt_size=320, num_worker_per_gpu='many', dataroot_lq='no/where')
    published['network_g'].update(heads=[3, 1, 1, 1])
    published['train'].update(total_iter=400000, warmup='none')
    published['val']['metrics']['psnr'].update(crop_border=-1)
    published['path']['resume_state'] = 'no.state'
    published['logger'] = 5
    found = check(published, 'dist_params:port=0')
    assert [line.partition(': ')[0] for line in found] == [
        'dist_params.port',
        'datasets.train.dataroot_lq',
        'datasets.train.num_worker_per_gpu',
        'datasets.train.iters',
        'datasets.train.gt_sizes.5',
        'network_g.heads',
        'path.resume_state',
        'train.scheduler.periods',
        'train.warmup',
        'val.metrics.psnr.crop_border',
        'logger',
    ]


UNSET = 'whose environment variable NOWHERE is not set'
PERCEPTUAL = 'train:pixel_opt={type: PerceptualLoss, weights: $NOWHERE/x}'
BLUR = 'datasets:val={type: Dataset_SyntheticBlur, dataroot_gt: ["$NOWHERE/x"]}'


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('path:pretrain_network_g=${NOWHERE}/x', 'path.pretrain_network_g: found "${NOWHERE}/x", '),
        ('path:resume_state=$NOWHERE', 'path.resume_state: found "$NOWHERE", '),
        ('datasets:val:meta_info_file=$NOWHERE/x', 'datasets.val.meta_info_file: found "$NOWHERE/x", '),
        (PERCEPTUAL, 'train.pixel_opt: found "$NOWHERE/x", '),
        (BLUR, 'datasets.val: found "$NOWHERE/x", '),
    ],
)
def test_paths_expand_environment_variables(check, published, pairs, monkeypatch, setting, message):
    monkeypatch.delenv('NOWHERE', raising=False)
    monkeypatch.setenv('PAIRS', str(Path(pairs['dataroot_lq']).parent))
    published['datasets']['val'].update(dataroot_lq='$PAIRS/lq')
    assert check(published, 'datasets:val:dataroot_gt=${PAIRS}/gt') == []
    (found,) = check(published, setting)
    assert found.startswith(f'{message}{UNSET}; allowed: ')


# ------------------------------------------------------------------ packs


@pytest.fixture(scope='module')
def packs(pairs, tmp_path_factory):
    """Channels → pack of 8 images with 2 · 3 crops each."""
    folder = tmp_path_factory.mktemp('packs')
    command = ['--input_dir', pairs['dataroot_lq'], '--target_dir', pairs['dataroot_gt'], '--workers', '0']
    command += ['--crop_size', '4', '--stride', '4']
    made = {channels: str(folder / f'{channels}.pack') for channels in (1, 3)}
    for channels, path in made.items():
        assert run('scripts.prepare_data', [*command, '--output', path, '--channels', str(channels)]) == 0
    return made


@pytest.fixture
def packed(published, packs):
    """The published content, on packs."""
    loading = ('gt_size', 'batch_size_per_gpu', 'mini_batch_sizes', 'gt_sizes', 'iters')
    train = {name: published['datasets']['train'][name] for name in loading}
    kind = {'type': 'Dataset_PackedImage', 'dataroot': packs[3]}
    published['datasets'] = {'train': {**train, **kind}, 'val': {**kind, 'name': 'ValSet'}}
    return published


def test_packs_in_place_of_folders(check, packed):
    assert check(packed, 'datasets:train:geometric_augs=false') == []
    assert check(packed, world_size=6) == []  # 48 crops: exactly one batch
    for settings, world_size, start in (
        (['datasets:train:dataroot_gt=x'], 1, '.dataroot_gt: found an unknown key'),
        (['datasets:train:dataroot=~'], 1, '.dataroot: found null; allowed: '),
        ([], 7, ': found a set of 48 samples; allowed: at least one batch, 56 (7 micro-batches of 8)'),
    ):
        (found,) = check(packed, *settings, world_size=world_size)
        assert found.startswith(f'datasets.train{start}')


def test_a_missing_pack_tells_how_to_make_it(check, packed):
    (found,) = check(packed, 'datasets:train:dataroot=some/set.pack', 'datasets:val:dataroot=other.pack')
    assert found == (
        'datasets.train.dataroot: found "some/set.pack", which is not an existing folder (as for '
        'datasets.val.dataroot); allowed: the pack that python scripts/prepare_data.py makes of images'
    )
    (found,) = check(packed, 'datasets:train:dataroot=Motion_Deblurring/Datasets/train/NoSuchSet.pack')
    assert 'allowed: the pack that python scripts/prepare_data.py makes of the NoSuchSet data, which ' in found
    assert 'Motion_Deblurring/README.md says how to prepare them; to try training without ' in found
    (found,) = check(packed, 'datasets:val:dataroot=some/set')
    assert found.endswith('found "some/set", which is not an existing folder; allowed: one that exists')


def test_a_damaged_pack_is_refused(check, packed, packs, tmp_path):
    pack = tmp_path / 'damaged.pack'
    shutil.copytree(packs[3], pack)
    (pack / 'pixels.bin').write_bytes(b'')
    (found,) = check(packed, f'datasets:val:dataroot={pack}')
    assert found.startswith(
        f'datasets.val: found a mistake in the files: {pack / "pixels.bin"}: found 0 bytes;'
    )


def test_the_channels_of_a_pack_are_those_of_the_network(check, packed, packs):
    found = check(packed, f'datasets:val:dataroot={packs[1]}')
    assert sorted(found) == [
        'network_g.inp_channels: found 3; allowed: 1, the channels of datasets.val',
        'network_g.out_channels: found 3; allowed: 1, the channels of datasets.val',
    ]
    grey = [f'datasets:{phase}:dataroot={packs[1]}' for phase in ('train', 'val')]
    grey += ['network_g:inp_channels=1', 'network_g:out_channels=1']
    assert check(packed, *grey) == []
    luma = ['val:metrics:psnr:test_y_channel=true', 'train:pixel_opt={type: PSNRLoss, toY: true}']
    keys = [line.partition(': ')[0] for line in check(packed, *grey, *luma)]
    assert sorted(keys) == ['train.pixel_opt.toY', 'val.metrics.psnr.test_y_channel']


# ------------------------------------------------------------------ added noise, two views


@pytest.fixture
def noisy(published, pairs):
    """`published` for denoising, blind."""
    own = {'train': {'sigma_type': 'random', 'sigma_range': [0, 50]}, 'val': {'sigma_test': 25}}
    for phase, section in published['datasets'].items():
        section.update(own[phase], type='Dataset_GaussianDenoising', dataroot_lq='none')
    return published


@pytest.fixture
def dual(published, pairs):
    """`published` for two views."""
    for section in published['datasets'].values():
        section.update(type='Dataset_DefocusDeblur_DualPixel_16bit', dataroot_lqR=section['dataroot_gt'])
        section['dataroot_lqL'] = section.pop('dataroot_lq')
    published['network_g'].update(inp_channels=6, dual_pixel_task=True)
    return published


NOISE_CASES = """\
datasets:train:sigma_type=choice

datasets:train:sigma_type=constant | datasets:train:sigma_range=15

datasets:train:sigma_type=constant
    datasets.train.sigma_range: found [0.0, 50.0]; allowed: one number, for sigma_type constant
datasets:train:sigma_range=50
    datasets.train.sigma_range: found 50.0; allowed: a list [from, to], for sigma_type random
datasets:train:sigma_range=~ | datasets:val:sigma_test=~
    datasets.train.sigma_range: found nothing; allowed: a number or a list, to train
    datasets.val.sigma_test: found nothing; allowed: a number, for images at full size
datasets:train:sigma_type=uniform | datasets:train:in_ch=4 | datasets:val:sigma_test=-1
    datasets.train.sigma_type: found "uniform"; allowed: "constant", "random" or "choice"
    datasets.train.in_ch: found 4; allowed: 1 or 3
    datasets.val.sigma_test: found -1; allowed: greater than or equal to 0
datasets:train:sigma_range=[0, 1e9] | datasets:val:sigma_test=256
    datasets.train.sigma_range: found [0, 1000000000.0]; allowed: a number
    datasets.train.sigma_range.1: found 1000000000.0; allowed: less than or equal to 255
    datasets.val.sigma_test: found 256; allowed: less than or equal to 255
datasets:train:in_ch=1
    network_g.inp_channels: found 3; allowed: 1, the channels of datasets.train
    network_g.out_channels: found 3; allowed: 1, the channels of datasets.train
datasets:val={type: Dataset_GaussianDenoising, dataroot_gt: gt.pack, sigma_test: 25, in_ch: 1}
    datasets.val.dataroot_gt: found "gt.pack", which is not an existing folder
    network_g.inp_channels: found 3; allowed: 1, the channels of datasets.val
    network_g.out_channels: found 3; allowed: 1, the channels of datasets.val
"""


@pytest.mark.parametrize(('settings', 'expected'), cases(NOISE_CASES), ids=str)
def test_mistakes_in_added_noise(check, noisy, settings, expected):
    found = check(noisy, *settings)
    assert len(found) == len(expected) and all(map(str.startswith, sorted(found), sorted(expected))), found


def test_missing_images_for_noise_are_named_with_a_way_to_try_it(check, noisy):
    (found,) = check(noisy, 'datasets:train:dataroot_gt=Denoising/Datasets/train/NoSuchSet')
    assert 'the NoSuchSet data, which python Denoising/download_data.py gets, and Denoising/README.md' in found
    assert found.endswith('-opt options/GaussianColorDenoising_Restormer_quickstart.yml')


def test_mixed_sets_need_a_noise_level_to_train_too(check, noisy):
    section = noisy['datasets']['train']
    one = {key: section.pop(key) for key in ('dataroot_gt', 'dataroot_lq', 'sigma_type', 'sigma_range')}
    one['type'], section['type'] = section['type'], 'Dataset_Mixed'
    for key in {*section} & {'io_backend', 'filename_tmpl', 'geometric_augs'}:
        del section[key]
    section['sets'] = [one, {'type': one['type'], 'dataroot_gt': one['dataroot_gt'], 'sigma_test': 15}]
    found = 'datasets.train.sets.1.sigma_range: found nothing; allowed: a number or a list, to train'
    assert check(noisy) == [found]


def test_sigma_test_is_not_needed_without_validation_nor_sigma_range_to_test(check, noisy, pairs, tmp_path):
    assert check(noisy, 'datasets:val=~') == []
    (tmp_path / 'net.pth').write_bytes(b'')
    noisy['path']['pretrain_network_g'] = str(tmp_path / 'net.pth')
    assert (
        check(noisy, 'datasets:train:sigma_range=~', 'datasets:train:sigma_type=constant', purpose='test') == []
    )


DUAL_CASES = """\
datasets:val:dataroot_gt=~

network_g:inp_channels=3
    network_g.inp_channels: found 3; allowed: 6, the channels of datasets.train
network_g:out_channels=6
    network_g.out_channels: found 6; allowed: 3, the channels of datasets.train
datasets:train:dataroot_gt=~ | val:metrics:psnr:test_y_channel=true
    datasets.train.dataroot_gt: found nothing; allowed: a value, to train
datasets:train:dataroot_lqL=some/where | datasets:val:dataroot_lqR=else/where
    datasets.train.dataroot_lqL: found "some/where", which is not an existing folder; allowed: one that exists
    datasets.val.dataroot_lqR: found "else/where", which is not an existing folder; allowed: one that exists
datasets:train:dataroot_lqR=Defocus_Deblurring/Datasets/train/NoSuchSet/inputR_crops | network_g:inp_channels=3
    datasets.train.dataroot_lqR: found "Defocus_Deblurring/Datasets/train/NoSuchSet/inputR_crops", which is not
    network_g.inp_channels: found 3; allowed: 6, the channels of datasets.train
datasets:train:dataroot_lqR=~
    datasets.train.dataroot_lqR: found null; allowed: text
"""


@pytest.mark.parametrize(('settings', 'expected'), cases(DUAL_CASES), ids=str)
def test_mistakes_in_two_views(check, dual, settings, expected):
    found = check(dual, *settings)
    assert len(found) == len(expected) and all(map(str.startswith, sorted(found), sorted(expected))), found


# ------------------------------------------------------------------ any key, any value


def keys_of(data, key=()):
    for name, value in data.items():
        yield (*key, name)
        if isinstance(value, dict):
            yield from keys_of(value, (*key, name))


def at(data, key):
    for name in key:
        data = data[name]
    return data


KEYS = list(keys_of(yaml.safe_load(PUBLISHED.read_text())))
FREE = {('logger', 'wandb', 'project'), ('logger', 'wandb', 'resume_id')}  # anything goes
NEEDED = """
name datasets network_g network_g.type
datasets.train datasets.train.type datasets.train.dataroot_gt datasets.train.dataroot_lq datasets.train.gt_size
datasets.train.batch_size_per_gpu datasets.train.mini_batch_sizes datasets.train.gt_sizes datasets.train.iters
datasets.train.io_backend.type datasets.val.type datasets.val.dataroot_lq datasets.val.io_backend.type
train train.total_iter train.optim_g train.optim_g.type train.optim_g.lr train.pixel_opt train.pixel_opt.type
train.scheduler train.scheduler.type train.scheduler.periods train.scheduler.eta_mins
val.metrics.psnr.type
"""


def wrong_type(value):
    if isinstance(value, str | dict):
        return [5]
    return {'a': 1} if value is None else 'abc'


def keys_with_mistakes(check, content):
    return {line.partition(': ')[0] for line in check(content)}


def test_every_wrong_type_is_named_with_all_others(check, published):
    """One file in which no value is right."""
    leaves = [key for key in KEYS if not isinstance(at(published, key), dict) and key not in FREE]
    content = copy.deepcopy(published)
    for key in leaves:
        at(content, key[:-1])[key[-1]] = wrong_type(at(published, key))
    # The keys beside an invalid type are unknown.
    typed = {key[:-1] for key in leaves if key[-1] == 'type' and key[-2] != 'io_backend'}
    free = {'.'.join(key) for key in leaves if not any(key[: len(section)] == section for section in typed)}
    assert len(free) > 20 and len(typed) == 7
    assert keys_with_mistakes(check, content) >= free | {'.'.join((*section, 'type')) for section in typed}
    for key in leaves:
        right = at(published, key)
        at(content, key[:-1])[key[-1]] = right if key[-1] == 'type' else wrong_type(right)
    assert keys_with_mistakes(check, content) >= {'.'.join(key) for key in leaves if key[-1] != 'type'}


def test_an_unknown_key_in_every_section_is_named(check, published):
    free = [('datasets',), ('val', 'metrics'), ('logger', 'wandb')]
    sections = [(), *(key for key in KEYS if isinstance(at(published, key), dict) and key not in free)]
    content = copy.deepcopy(published)
    for section in sections:
        at(content, section)['zzz'] = 1
    assert keys_with_mistakes(check, content) == {'.'.join((*section, 'zzz')) for section in sections}
    assert len(sections) == 16


@pytest.mark.parametrize('key', KEYS, ids='.'.join)
def test_a_key_that_is_missing_null_or_of_a_wrong_type(check, published, key):
    content = copy.deepcopy(published)
    section, name, value = at(content, key[:-1]), key[-1], at(content, key)
    dotted = '.'.join(key)
    section[name] = None
    check(content)  # many may be null
    section[name] = wrong_type(value)
    is_named = [re.match(rf'{re.escape(dotted)}(\.\w+)?: found .+; allowed: ', line) for line in check(content)]
    assert any(is_named) or key in FREE
    del section[name]
    is_named = [line.startswith(f'{dotted}: found') for line in check(content)]
    assert any(is_named) == (dotted in NEEDED.split())


ODD = [
    *(None, True, 0, -1, 5, -0.5, 1e-308, float('nan'), float('inf')),  # (10^30 blocks would take their time)
    *('', 'abc', '~', '/', '..', '\0', 'ä' * 300),
    *([], [[]], [None], [-1], [0, 'a'], [1, 2, 3, 4], [5] * 6),
    *({}, {'type': None}, {'type': 5}, {'type': ['x']}, {'type': 'L1Loss'}, {'': ''}),
    *({'train': {}}, {'a': {'b': {'c': []}}}),
]


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('kind', ['published', 'noisy', 'dual'])
def test_odd_values_give_messages_and_no_traceback(check, request, kind, seed):
    generator = random.Random(seed)
    content = copy.deepcopy(request.getfixturevalue(kind))
    keys = [*keys_of(content)]
    if kind != 'published':  # in the keys of the sets alone
        keys = [key for key in keys if key[0] == 'datasets' and len(key) > 2]
    for _ in range(generator.choice([1, 2, 5])):
        key = generator.choice(keys)
        try:
            section = at(content, key[:-1])
            section[generator.choice([key[-1], key[-1] + 'x'])] = copy.deepcopy(generator.choice(ODD))
        except (TypeError, LookupError):  # under a value that has been replaced before
            continue
    for line in check(content, purpose=generator.choice(['train', 'train', 'test'])):
        assert re.search(r': found .+; allowed: .+', line, re.DOTALL), line


# ------------------------------------------------------------------ how a step is computed


@pytest.mark.parametrize(('processes', 'nearest'), [(3, '2 or 4'), (6, '4 or 8'), (16, '8')])
def test_processes_that_cannot_share_the_global_batch_are_refused(check, published, processes, nearest):
    settings = ['train:accumulate=auto', 'datasets:train:dataset_enlarge_ratio=99']
    (found,) = check(published, *settings, world_size=processes)
    assert found.startswith(f'num_gpu: found 8, on {processes} processes') and f'nearest: {nearest})' in found


@pytest.mark.parametrize('processes', [1, 2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(check, published, processes):
    many = 'datasets:train:dataset_enlarge_ratio=8'
    assert check(published, 'train:accumulate=auto', many, world_size=processes) == []
    (found,) = check(published, 'train:accumulate=auto', world_size=processes)
    assert 'found a set of 8 samples; allowed: at least one batch, 64 (8 micro-batches of 8)' in found


# ------------------------------------------------------------------ a user's own classes


USERS = """
import torch
from torch import nn
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY

@ARCH_REGISTRY.register()
class NeedsStorage(nn.Module):
    multiple = 'many'
    def __init__(self, depth=3):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, depth)]

@DATASET_REGISTRY.register()
class Numbers:
    def __init__(self, count: int, unused=None):
        self.count = 1 // count
    def __len__(self):
        return self.count

@LOSS_REGISTRY.register()
class NotReduced(nn.Module):
    reduction = 'none'
    def __init__(self, loss_weight=1.0):
        super().__init__()
        if loss_weight > 5:
            raise KeyError('so large')

@METRIC_REGISTRY.register()
def no_range(restored, truth):
    return 0.0

@METRIC_REGISTRY.register()
def not_a_number(restored, truth, crop_border=0, data_range=255):
    return 'x'

@METRIC_REGISTRY.register()
def good(restored, truth, data_range):
    assert restored.shape == truth.shape and data_range in (1, 255)
    return float(abs(restored - truth).mean() / data_range)
"""


USERS_CASES = """
network_g={type: NeedsStorage}

network_g={type: NeedsStorage} | train:activation_checkpointing=true
    train.activation_checkpointing: found true; allowed: false, as NeedsStorage has no attribute
network_g={type: NeedsStorage, depth: x}
    network_g: found values that do not work (TypeError:
datasets:val={type: Numbers, count: 1}

datasets:val={type: Numbers, count: 0}
    datasets.val: found values that do not work (ZeroDivisionError
datasets:val={type: Numbers, count: 1, unused: -1}

datasets:val={type: Numbers}
    datasets.val.count: found nothing; allowed: a value
datasets:train={type: Numbers, count: 1, gt_size: 8, batch_size_per_gpu: 2}
    datasets.train: found a set of 1 sample; allowed: at least one batch, 2
train:pixel_opt={type: NotReduced}
    train.pixel_opt.reduction: found "none"
train:pixel_opt={type: NotReduced, loss_weight: 9}
    train.pixel_opt: found values that do not work (KeyEr
val:metrics:x:type=no_range
    val.metrics.x: found values that do not work (TypeError: no_range() got an
val:metrics:x:type=not_a_number
    val.metrics.x: found values that do not work (ValueError: could not
val:metrics:x={type: not_a_number, crop_border: a}
    val.metrics.x: found values that do not work (TypeE
val:metrics:x:type=good

val:metrics:x:type=good | val:use_image=false
"""


@pytest.mark.parametrize(('settings', 'expected'), cases(USERS_CASES), ids=str)
def test_users_classes(check, published, module, settings, expected):
    found = check({**yaml.safe_load(module(USERS)), **published}, *settings)
    assert len(found) == len(expected), found
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found
