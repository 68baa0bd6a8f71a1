"""Every task of the paper, from made-up data to restored images: train → resume → evaluate → demo."""

import json
import math

import numpy as np
import pytest
import scipy.io

from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.tasks import TASKS
from basicsr.utils.cli import run
from basicsr.utils.files import ROOT

NETWORK = ['dim=8', 'num_blocks=[1, 1, 1, 1]', 'num_refinement_blocks=1', 'heads=[1, 1, 2, 2]']
SIDE = 40
NAMES = ('1', '2', '10')

# Task → option file, kind of data set → its folder, from `train` or `val`.
PAIRS, CENTRE = {'lq': 'input', 'gt': 'target'}, {'lq': 'inputC', 'gt': 'target'}
VIEWS = {'lqL': 'inputL', 'lqR': 'inputR', 'gt': 'target'}
RECIPES = {
    'motion_deblurring': ('Deblurring_Restormer', PAIRS),
    'deraining': ('Deraining_Restormer', PAIRS),
    'single_image_defocus_deblurring': ('DefocusDeblur_Single_8bit_Restormer', CENTRE),
    'dual_pixel_defocus_deblurring': ('DefocusDeblur_DualPixel_16bit_Restormer', VIEWS),
    'real_denoising': ('RealDenoising_Restormer', PAIRS),
    'gaussian_color_denoising': ('GaussianColorDenoising_Restormer', {'gt': ''}),
    'gaussian_gray_denoising': ('GaussianGrayDenoising_RestormerSigma25', {'gt': ''}),
}


def make_images(folder, kinds, deep):
    """Images of every kind, and the place of each kind."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        waves = 0.2 * np.sin(np.arange(SIDE) / 5)[:, None, None] * np.ones((1, SIDE, 1))
        clean = rng.uniform(0.2, 0.8, 3) + waves
        for kind in kinds:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image = clean if kind in ('target', '') else clean + rng.normal(0, 0.1, clean.shape)
            full = 65535 if deep else 255
            levels = (image.clip(0, 1) * full).round().astype(np.uint16 if deep else np.uint8)
            write_png(folder / kind / f'{name}.png', levels)


def train(task, name, data, total, *more):
    option_file, kinds = RECIPES[task]
    settings = [
        f'name={name}', 'num_gpu=0', f'train:total_iter={total}', 'train:scheduler:periods=[4, 6]',
        'datasets:train:iters=[6, 4]', 'datasets:train:gt_sizes=[16, 24]', 'datasets:train:gt_size=24',
        'datasets:train:mini_batch_sizes=[2, 1]', 'datasets:train:batch_size_per_gpu=2', 'val:val_freq=5',
        'datasets:train:num_worker_per_gpu=0', 'logger:save_checkpoint_freq=5', 'logger:print_freq=5',
        *(f'network_g:{setting}' for setting in NETWORK),
    ]  # fmt: skip
    for phase in ('train', 'val'):
        settings += [f'datasets:{phase}:dataroot_{kind}={data}/{phase}/{kinds[kind]}' for kind in kinds]
    return run(
        'basicsr.train', ['-opt', str(ROOT / 'options' / f'{option_file}.yml'), *more, '--force_yml', *settings]
    )


def make_test_set(task, folder):
    """The first test set of the task in `folder`, and its name on the command line."""
    one = TASKS[task].test_sets[0]
    place = folder / one.place
    if one.layout == 'sidd':
        rng = np.random.default_rng(1)
        clean = rng.integers(60, 200, (2, 2, 1, 1, 3), np.uint8) + np.zeros((2, 2, 32, 32, 3), np.uint8)
        noisy = (clean + rng.normal(0, 20, clean.shape)).clip(0, 255).astype(np.uint8)
        place.mkdir(parents=True)
        for kind, blocks in (('Noisy', noisy), ('Gt', clean)):
            name = f'Validation{kind}BlocksSrgb'
            scipy.io.savemat(place / f'{name}.mat', {name: blocks})
    else:
        kinds = {'noise': ('',), 'defocus': ('inputC', 'target'), 'dual_pixel': ('inputL', 'inputR', 'target')}
        make_images(place, kinds.get(one.layout, ('input', 'target')), deep='defocus' in task)
    return one, place.name


@pytest.mark.parametrize('task', TASKS)
def test_from_data_to_restored_images(task, runs, tmp_path, capsys):
    name, data = runs.name(), tmp_path / 'data'
    deep, kinds = 'defocus' in task, RECIPES[task][1]
    for phase in ('train', 'val'):
        make_images(data / phase, kinds.values(), deep)
    assert train(task, name, data, 6) == 0
    assert train(task, name, data, 10, '--auto_resume') == 0
    models = ROOT / 'experiments' / name / 'models'
    assert {'net_g_5.pth', 'net_g_10.pth', 'net_g_latest.pth'} <= {path.name for path in models.iterdir()}
    history = (ROOT / 'experiments' / name / 'history.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in history]
    assert max(record['iter'] for record in records) == 10
    values = [value for record in records for value in record.values() if isinstance(value, float)]
    assert values and all(map(math.isfinite, values))
    capsys.readouterr()

    # Evaluate. The figures of one image, measured again from what was written.
    one, set_name = make_test_set(task, data / 'test')
    folder = TASKS[task].folder
    weights = str(models / 'net_g_latest.pth')
    several = sum(other.folder == folder for other in TASKS.values()) > 1
    given = ['--data_dir', str(data / 'test'), '--datasets', set_name, '--weights', weights, '--device', 'cpu']
    given += ['--save_dir', str(tmp_path / 'saved'), '--json', str(tmp_path / 'figures.json')]
    given += ['--task', task] if several else []
    given += ['--sigma', '15'] if one.sigma else []
    assert run(f'{folder}.evaluate', given) == 0
    assert 'Restormer' in capsys.readouterr().out
    figures = json.loads((tmp_path / 'figures.json').read_text())['datasets'][one.name]
    assert len(figures['images']) == (4 if one.layout == 'sidd' else 3)
    assert all(math.isfinite(value) for value in figures['mean'].values())
    saved = tmp_path / 'saved' / one.name

    # The demo restores what the test set has as its input, to the same pixels.
    source = data / 'test' / set_name / kinds.get('lq', 'inputL')
    if one.layout in ('sidd', 'noise'):  # their input is in no image file
        source = data / 'train' / kinds['gt']
    given = ['--task', task.title(), '--input_dir', str(source), '--result_dir', str(tmp_path / 'out')]
    given += ['--weights', weights, '--device', 'cpu', '--precision', 'fp32']
    if task == 'dual_pixel_defocus_deblurring':
        given += ['--right_dir', str(source.parent / 'inputR')]
    assert run('basicsr.demo', given) == 0
    for image in NAMES:
        found = read_image(tmp_path / 'out' / task / f'{image}.png').pixels
        assert found.dtype == (np.uint16 if deep else np.uint8)
        if one.layout in ('pairs', 'dual_pixel'):
            np.testing.assert_array_equal(found, read_image(saved / f'{image}.png').pixels)
