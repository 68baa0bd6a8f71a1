"""The thirteen published option files, written out from their facts: they load unchanged, and ours say the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_options import at, leaves

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
network_g: {type: Restormer, inp_channels: 3, out_channels: 3, dim: 48, num_blocks: [4, 6, 6, 8],
  num_refinement_blocks: 4, heads: [1, 2, 4, 8], ffn_expansion_factor: 2.66, bias: False, LayerNorm_type: WithBias,
  dual_pixel_task: False}
path: {pretrain_network_g: ~, strict_load_g: true, resume_state: ~}
train:
  total_iter: 300000
  warmup_iter: -1
  use_grad_clip: true
  scheduler: {type: CosineAnnealingRestartCyclicLR, periods: [92000, 208000], restart_weights: [1, 1],
    eta_mins: [0.0003, 0.000001]}
  mixing_augs: {mixup: false, mixup_beta: 1.2, use_identity: true}
  optim_g: {type: AdamW, lr: !!float 3e-4, weight_decay: !!float 1e-4, betas: [0.9, 0.999]}
  pixel_opt: {type: L1Loss, loss_weight: 1, reduction: mean}
val: {window_size: 8, val_freq: !!float 4e3, save_img: false, rgb2bgr: true, use_image: true, max_minibatch: 8,
  metrics: {psnr: {type: calculate_psnr, crop_border: 0, test_y_channel: false}}}
logger: {print_freq: 1000, save_checkpoint_freq: !!float 4e3, use_tb_logger: true,
  wandb: {project: ~, resume_id: ~}}
dist_params: {backend: nccl, port: 29500}
"""
PAIRS, CENTRE = {'lq': 'input', 'gt': 'target'}, {'lq': 'inputC', 'gt': 'target'}
VIEWS = {'lqL': 'inputL', 'lqR': 'inputR', 'gt': 'target'}
GAUSSIAN, NO_IMAGE = 'Dataset_GaussianDenoising', {'use_image': False}

# Name → type of the sets, places to train and to validate on, folder of each kind, further differences from MOTION.
FILES = {
    'Deblurring_Restormer': (
        'Dataset_PairedImage', 'Motion_Deblurring', 'train/GoPro/{}_crops', 'val/GoPro/{}_crops', PAIRS, {},
    ),
    'Deraining_Restormer': (
        'Dataset_PairedImage', 'Deraining', 'train/Rain13K/{}', 'test/Rain100L/{}', PAIRS,
        {'val': {'metrics': {'psnr': {'test_y_channel': True}}}},
    ),
    'DefocusDeblur_Single_8bit_Restormer': (
        'Dataset_PairedImage', 'Defocus_Deblurring', 'train/DPDD/{}_crops', 'val/DPDD/{}_crops', CENTRE,
        {'val': NO_IMAGE},
    ),
    'DefocusDeblur_DualPixel_16bit_Restormer': (
        'Dataset_DefocusDeblur_DualPixel_16bit', 'Defocus_Deblurring', 'train/DPDD/{}_crops', 'val/DPDD/{}_crops',
        VIEWS, {'network_g': {'inp_channels': 6, 'dual_pixel_task': True}, 'val': NO_IMAGE},
    ),
    'RealDenoising_Restormer': (
        'Dataset_PairedImage', 'Denoising', 'train/SIDD/{}_crops', 'val/SIDD/{}_crops', PAIRS,
        {'network_g': {'LayerNorm_type': 'BiasFree'}, 'train': {'mixing_augs': {'mixup': True}}, 'val': NO_IMAGE},
    ),
}  # fmt: skip
for colour, channels, test_set in (('Color', 3, 'CBSD68'), ('Gray', 1, 'BSD68')):
    for sigma in (None, 15, 25, 50):
        training = {'sigma_type': 'constant' if sigma else 'random', 'sigma_range': sigma or [0, 50]}
        FILES[f'Gaussian{colour}Denoising_Restormer{f"Sigma{sigma}" if sigma else ""}'] = (
            GAUSSIAN, 'Denoising', 'train/DFWB', f'test/{test_set}', {'gt': ''},
            {
                'datasets': {
                    'train': {'dataroot_lq': 'none', 'in_ch': channels, **training},
                    'val': {'dataroot_lq': 'none', 'in_ch': channels, 'sigma_test': sigma or 25},
                },
                'network_g': {'inp_channels': channels, 'out_channels': channels, 'LayerNorm_type': 'BiasFree'},
                'train': {'mixing_augs': {'mixup': True}},
                'val': NO_IMAGE,
            },
        )  # fmt: skip

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


def published(name):
    kind, folder, *places, kinds, others = FILES[name]
    datasets = {
        phase: {
            'type': kind,
            'dataroot_lq': None,
            **{f'dataroot_{key}': f'./{folder}/Datasets/{place}'.format(kinds[key]) for key in kinds},
        }
        for phase, place in zip(('train', 'val'), places, strict=True)
    }
    return merged(merged(yaml.safe_load(MOTION), {'name': name, 'datasets': datasets}), others)


PUBLISHED = {name: published(name) for name in FILES}
NAMES = pytest.mark.parametrize('name', PUBLISHED)


@NAMES
def test_published_files_load_unchanged(load, name):
    text = MOTION if name == 'Deblurring_Restormer' else yaml.safe_dump(PUBLISHED[name], sort_keys=False)
    options = load(text)
    assert not isinstance(options, list), options
    for key, value in leaves(PUBLISHED[name]):
        assert at(options, key) == value, key


@NAMES
def test_our_files_say_the_same(name):
    assert len(PUBLISHED) == 13
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
