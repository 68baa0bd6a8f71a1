"""The programs as a user starts them: train → kill → resume → test → demo."""

from __future__ import annotations

import csv
import json
import math
import signal
import sys

import cv2
import numpy as np
import pytest
import yaml
from kill_and_resume import ROOT, Runs, difference, dying_in_save, results, train
from kill_and_resume import run as run_program

from basicsr.utils.cli import run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Name and option file of a run that nothing interrupts."""
    made = Runs(tmp_path_factory.mktemp('trained'))
    try:
        name, path = made.option_file()
        done = run_program([sys.executable, str(ROOT / 'basicsr' / 'train.py'), '-opt', str(path)])
        assert done.returncode == 0, done.stdout
        yield name, path
    finally:
        made.clean()


@pytest.mark.slow
def test_a_run_killed_in_saves_ends_with_the_same_bits(trained, runs):
    """Saves come in pairs, weights and state (and best weights): die in one of each kind."""
    name, path = runs.option_file()
    for save in (1, 2, 4, 7):
        done = train(path, '--auto_resume', prepare=dying_in_save(save))
        assert done.returncode == -signal.SIGKILL, done.stdout
    done = train(path, '--auto_resume')
    assert done.returncode == 0, done.stdout
    assert difference(results(name), results(trained[0])) is None
    folders = [ROOT / 'experiments' / name / folder for folder in ('models', 'training_states')]
    assert not [path for folder in folders for path in folder.glob('.*')]


def test_trained_weights_are_tested_and_used(trained, runs, tmp_path, capsys):
    name, train_file = trained
    folder = train_file.parent
    weights = ROOT / 'experiments' / name / 'models' / 'net_g_latest.pth'
    test_name, test_file = runs.option_file()
    content = yaml.safe_load(test_file.read_text())
    data = content['datasets']['val']
    content['datasets'] = {
        'test': {**data, 'name': 'Pairs'},
        'test_2': {**{key: value for key, value in data.items() if key != 'dataroot_gt'}, 'name': 'NoTruth'},
    }
    content['path'] = {'pretrain_network_g': f'experiments/{name}/models/net_g_latest.pth'}
    content['val'] = {
        'save_img': True,
        'metrics': {'psnr': {'type': 'calculate_psnr'}, 'ssim_3d': {'type': 'calculate_ssim_3d'}},
    }
    test_file.write_text(yaml.safe_dump(content))
    done = run_program([sys.executable, str(ROOT / 'basicsr' / 'test.py'), '-opt', str(test_file)])
    assert done.returncode == 0, done.stdout
    assert 'params_ema' in done.stdout

    out = ROOT / 'results' / test_name
    measured = json.loads((out / 'metrics.json').read_text())['datasets']['Pairs']
    assert [image['name'] for image in measured['images']] == [str(index) for index in range(6)]
    for image in measured['images']:
        truth, degraded, restored = (
            cv2.imread(str(path / f'{image["name"]}.png')).astype(np.float64)
            for path in (folder / 'target', folder / 'input', out / 'visualization' / 'Pairs')
        )
        assert image['psnr'] == pytest.approx(10 * math.log10(255**2 / ((truth - restored) ** 2).mean()))
        assert image['input_psnr'] == pytest.approx(10 * math.log10(255**2 / ((truth - degraded) ** 2).mean()))
    mean = measured['mean']['psnr']
    assert mean == pytest.approx(np.mean([image['psnr'] for image in measured['images']]))
    assert f'{mean:.4f}' in done.stdout
    rows = list(csv.DictReader((out / 'metrics.csv').open()))
    assert len(rows) == 6 + 1 + 6 + 1 and float(rows[6]['psnr']) == pytest.approx(mean)
    assert len(list((out / 'visualization' / 'NoTruth').iterdir())) == 6

    # The demo restores the same pixels from the same weights, and is not told about the network.
    arguments = {'task': 'Motion_Deblurring', 'device': 'cpu', 'precision': 'fp32', 'weights': str(weights)}
    arguments |= {'input_dir': str(folder / 'input'), 'result_dir': str(tmp_path / 'restored')}
    assert run('basicsr.demo', [word for key, value in arguments.items() for word in (f'--{key}', value)]) == 0
    for index in range(6):
        mine = cv2.imread(str(tmp_path / 'restored' / 'motion_deblurring' / f'{index}.png'))
        tested = cv2.imread(str(out / 'visualization' / 'Pairs' / f'{index}.png'))
        assert np.array_equal(mine, tested), np.unique(mine.astype(int) - tested, return_counts=True)


def test_without_the_data_train_py_says_how_to_get_it(runs, monkeypatch, capsys):
    """From any working directory. With data that nobody has: the paper's training must not start here."""
    name = runs.name()
    place = 'Motion_Deblurring/Datasets/train/NoSuchSet'
    settings = [f'name={name}', *(f'datasets:train:dataroot_{kind}={place}/{kind}' for kind in ('lq', 'gt'))]
    monkeypatch.chdir('/')
    option_file = str(ROOT / 'options' / 'Deblurring_Restormer.yml')
    assert run('basicsr.train', ['-opt', option_file, '--force_yml', *settings]) == 2
    said = ''.join(capsys.readouterr())
    assert 'Motion_Deblurring/README.md' in said and 'Deblurring_Restormer_quickstart.yml' in said
    assert 'Traceback' not in said
    assert not (ROOT / 'experiments' / name).exists()


@pytest.mark.slow
def test_the_quickstart(runs, tmp_path):
    """Its files, except for length and paths."""
    assert run('scripts.synthesize_blur', ['--output', str(tmp_path / 'set')]) == 0
    name, test_name = runs.name(), runs.name()

    def roots(phase, split):
        pairs = (('lq', 'input'), ('gt', 'target'))
        return [f'datasets:{phase}:dataroot_{kind}={tmp_path}/set/{split}/{folder}' for kind, folder in pairs]

    short = ['train:total_iter=2', 'train:scheduler:periods=[2]', 'datasets:train:iters=[1, 1]']
    settings = [f'name={name}', *short, *roots('train', 'train'), *roots('val', 'val')]
    option_file = str(ROOT / 'options' / 'Deblurring_Restormer_quickstart.yml')
    assert run('basicsr.train', ['-opt', option_file, '--force_yml', *settings]) == 0
    weights = f'path:pretrain_network_g=experiments/{name}/models/net_g_latest.pth'
    option_file = str(ROOT / 'options' / 'test' / 'Deblurring_quickstart.yml')
    settings = [f'name={test_name}', weights, *roots('test', 'val')]
    assert run('basicsr.test', ['-opt', option_file, '--force_yml', *settings]) == 0
    metrics = json.loads((ROOT / 'results' / test_name / 'metrics.json').read_text())
    figures = metrics['datasets']['SyntheticBlur']
    names = [f'{kind}{metric}' for kind in ('', 'input_') for metric in ('psnr', 'ssim_3d', 'ssim_2d')]
    assert sorted(figures['mean']) == sorted(names)
    assert [image['name'] for image in figures['images']] == ['chelsea-1', 'chelsea-2', 'coffee-1', 'coffee-2']
