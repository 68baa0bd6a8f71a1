"""The thirteen published option files, written out from their facts: they load unchanged, and ours say the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from basicsr.images.writer import write_png
from basicsr.options.load import read_options
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY

ROOT = Path(__file__).resolve().parents[2]

MOTION = """
name: Deblurring_Restormer
model_type: ImageCleanModel
scale: 1
num_gpu: 8
manual_seed: 100
datasets:
  train:
    name: TrainSet
    type: Dataset_PairedImage
    dataroot_gt: ./Motion_Deblurring/Datasets/train/GoPro/target_crops
    dataroot_lq: ./Motion_Deblurring/Datasets/train/GoPro/input_crops
    geometric_augs: true
    filename_tmpl: '{}'
    io_backend: {type: disk}
    use_shuffle: true
    num_worker_per_gpu: 8
    batch_size_per_gpu: 8
    mini_batch_sizes: [8, 5, 4, 2, 1, 1]
    iters: [92000, 64000, 48000, 36000, 36000, 24000]
    gt_size: 384
    gt_sizes: [128, 160, 192, 256, 320, 384]
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
  val:
    name: ValSet
    type: Dataset_PairedImage
    dataroot_gt: ./Motion_Deblurring/Datasets/val/GoPro/target_crops
    dataroot_lq: ./Motion_Deblurring/Datasets/val/GoPro/input_crops
    io_backend: {type: disk}
network_g:
  type: Restormer
  inp_channels: 3
  out_channels: 3
  dim: 48
  num_blocks: [4, 6, 6, 8]
  num_refinement_blocks: 4
  heads: [1, 2, 4, 8]
  ffn_expansion_factor: 2.66
  bias: False
  LayerNorm_type: WithBias
  dual_pixel_task: False
path: {pretrain_network_g: ~, strict_load_g: true, resume_state: ~}
train:
  total_iter: 300000
  warmup_iter: -1
  use_grad_clip: true
  scheduler:
    type: CosineAnnealingRestartCyclicLR
    periods: [92000, 208000]
    restart_weights: [1, 1]
    eta_mins: [0.0003, 0.000001]
  mixing_augs: {mixup: false, mixup_beta: 1.2, use_identity: true}
  optim_g: {type: AdamW, lr: !!float 3e-4, weight_decay: !!float 1e-4, betas: [0.9, 0.999]}
  pixel_opt: {type: L1Loss, loss_weight: 1, reduction: mean}
val:
  window_size: 8
  val_freq: !!float 4e3
  save_img: false
  rgb2bgr: true
  use_image: true
  max_minibatch: 8
  metrics:
    psnr: {type: calculate_psnr, crop_border: 0, test_y_channel: false}
logger:
  print_freq: 1000
  save_checkpoint_freq: !!float 4e3
  use_tb_logger: true
  wandb: {project: ~, resume_id: ~}
dist_params: {backend: nccl, port: 29500}
"""

# Name → what differs from MOTION; null: the key is missing there.
DIFFERENCES = """
Deblurring_Restormer: {}
Deraining_Restormer:
  datasets:
    train:
      dataroot_gt: ./Deraining/Datasets/train/Rain13K/target
      dataroot_lq: ./Deraining/Datasets/train/Rain13K/input
    val:
      dataroot_gt: ./Deraining/Datasets/test/Rain100L/target
      dataroot_lq: ./Deraining/Datasets/test/Rain100L/input
  val: {metrics: {psnr: {test_y_channel: true}}}
DefocusDeblur_Single_8bit_Restormer:
  datasets:
    train:
      dataroot_gt: ./Defocus_Deblurring/Datasets/train/DPDD/target_crops
      dataroot_lq: ./Defocus_Deblurring/Datasets/train/DPDD/inputC_crops
    val:
      dataroot_gt: ./Defocus_Deblurring/Datasets/val/DPDD/target_crops
      dataroot_lq: ./Defocus_Deblurring/Datasets/val/DPDD/inputC_crops
  val: {use_image: false}
DefocusDeblur_DualPixel_16bit_Restormer:
  datasets:
    train:
      type: Dataset_DefocusDeblur_DualPixel_16bit
      dataroot_gt: ./Defocus_Deblurring/Datasets/train/DPDD/target_crops
      dataroot_lq: ~
      dataroot_lqL: ./Defocus_Deblurring/Datasets/train/DPDD/inputL_crops
      dataroot_lqR: ./Defocus_Deblurring/Datasets/train/DPDD/inputR_crops
    val:
      type: Dataset_DefocusDeblur_DualPixel_16bit
      dataroot_gt: ./Defocus_Deblurring/Datasets/val/DPDD/target_crops
      dataroot_lq: ~
      dataroot_lqL: ./Defocus_Deblurring/Datasets/val/DPDD/inputL_crops
      dataroot_lqR: ./Defocus_Deblurring/Datasets/val/DPDD/inputR_crops
  network_g: {inp_channels: 6, dual_pixel_task: True}
  val: {use_image: false}
RealDenoising_Restormer:
  datasets:
    train:
      dataroot_gt: ./Denoising/Datasets/train/SIDD/target_crops
      dataroot_lq: ./Denoising/Datasets/train/SIDD/input_crops
    val:
      dataroot_gt: ./Denoising/Datasets/val/SIDD/target_crops
      dataroot_lq: ./Denoising/Datasets/val/SIDD/input_crops
  network_g: {LayerNorm_type: BiasFree}
  train: {mixing_augs: {mixup: true}}
  val: {use_image: false}
"""
GAUSSIAN = """
datasets:
  train:
    type: Dataset_GaussianDenoising
    dataroot_gt: ./Denoising/Datasets/train/DFWB
    dataroot_lq: none
    sigma_type: {kind}
    sigma_range: {train}
    in_ch: {channels}
  val:
    type: Dataset_GaussianDenoising
    dataroot_gt: ./Denoising/Datasets/test/{test_set}
    dataroot_lq: none
    sigma_test: {test}
    in_ch: {channels}
network_g: {{inp_channels: {channels}, out_channels: {channels}, LayerNorm_type: BiasFree}}
train: {{mixing_augs: {{mixup: true}}}}
val: {{use_image: false}}
"""

# Keys that our files have beside the published ones.
OWN = {('train', key) for key in ('accumulate', 'precision', 'compile', 'activation_checkpointing')}
OWN_OF = {'DefocusDeblur_Single_8bit_Restormer': {('datasets', phase, 'bits') for phase in ('train', 'val')}}

PARAMETERS = {(3, False): 26_126_644, (6, False): 26_132_548, (3, True): 26_111_668, (1, True): 26_109_076}


def merged(base, changes):
    """`base` with the values of `changes`, section by section."""
    result = {**base}
    for key, value in changes.items():
        is_section = isinstance(value, dict) and key in base
        result[key] = merged(base[key], value) if is_section else value
    return {key: value for key, value in result.items() if key not in changes or changes[key] is not None}


def published_files():
    changes = yaml.safe_load(DIFFERENCES)
    for colour, channels, test_set in (('Color', 3, 'CBSD68'), ('Gray', 1, 'BSD68')):
        for sigma in (None, 15, 25, 50):
            text = GAUSSIAN.format(
                kind='constant' if sigma else 'random',
                train=sigma or [0, 50],
                test=sigma or 25,
                channels=channels,
                test_set=test_set,
            )
            suffix = f'Sigma{sigma}' if sigma else ''
            changes[f'Gaussian{colour}Denoising_Restormer{suffix}'] = yaml.safe_load(text)
    motion = yaml.safe_load(MOTION)
    return {name: merged(motion, {'name': name, **each}) for name, each in changes.items()}


PUBLISHED = published_files()
NAMES = pytest.mark.parametrize('name', PUBLISHED)


def leaves(data, key=()):
    for name, value in data.items():
        yield from leaves(value, (*key, name)) if isinstance(value, dict) else [((*key, name), value)]


def at(options, key):
    for name in key:
        options = options[name] if isinstance(options, dict) else getattr(options, name)
    return options


def test_there_are_thirteen():
    assert len(PUBLISHED) == 13


@NAMES
def test_published_files_load_unchanged(load, name):
    text = MOTION if name == 'Deblurring_Restormer' else yaml.safe_dump(PUBLISHED[name], sort_keys=False)
    options = load(text)
    assert not isinstance(options, list), options
    for key, value in leaves(PUBLISHED[name]):
        assert at(options, key) == value, key


@NAMES
def test_our_files_say_the_same(name):
    ours = dict(leaves(yaml.safe_load((ROOT / 'options' / f'{name}.yml').read_text())))
    published = dict(leaves(PUBLISHED[name]))
    assert {key: ours.get(key, 'missing') for key in published} == published
    assert ours.keys() - published.keys() == OWN | OWN_OF.get(name, set())


@NAMES
def test_networks_have_the_published_numbers_of_parameters(name):
    options = read_options(ROOT / 'options' / f'{name}.yml')
    with torch.device('meta'):
        net = ARCH_REGISTRY.build(options.network_g)
    section = options.network_g
    expected = PARAMETERS[section.inp_channels, section.LayerNorm_type == 'BiasFree']
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@NAMES
def test_published_files_have_no_mistake_where_their_data_exist(tmp_path, name):
    content = copy.deepcopy(PUBLISHED[name])
    for phase in ('train', 'val'):
        for key, value in content['datasets'][phase].items():
            if key.startswith('dataroot') and value != 'none':
                folder = tmp_path / key
                folder.mkdir(exist_ok=True)
                for number in range(8):
                    write_png(folder / f'{number}.png', np.full((9, 8, 3), number, np.uint8))
                content['datasets'][phase][key] = str(folder)
    (tmp_path / 'options.yml').write_text(yaml.safe_dump(content))
    options = read_options(tmp_path / 'options.yml', [], 'train')
    sample = DATASET_REGISTRY.build(options.datasets['val'])[3]
    assert len(sample['lq']) == options.network_g.inp_channels
    assert len(sample['gt']) == options.network_g.out_channels
