"""All three entry points as a user starts them: train → kill → resume → test → demo; and two processes."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from kill_and_resume import DIE_IN_A_SAVE, ROOT, command, difference, results, run


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    from kill_and_resume import Runs

    made = Runs(tmp_path_factory.mktemp('whole'))
    try:
        name, path = made.option_file()
        done = run(command(path))
        assert done.returncode == 0, done.stdout
        yield name, path
    finally:
        made.clean()


def test_killed_in_the_middle_of_saves_and_resumed(whole, runs):
    """Saves come in pairs, weights and state (and best weights): die in one of each kind."""
    name, path = runs.option_file()
    killed = 0
    for save in (1, 2, 4, 7):
        dying = [
            sys.executable,
            '-c',
            DIE_IN_A_SAVE.replace('{save}', str(save)),
            '-opt',
            str(path),
            '--auto_resume',
        ]
        done = run(dying)
        assert done.returncode == -signal.SIGKILL, done.stdout
        killed += 1
    assert killed == 4
    done = run(command(path, '--auto_resume'))
    assert done.returncode == 0, done.stdout
    assert difference(results(name), results(whole[0])) is None
    leftovers = [
        p for folder in ('models', 'training_states') for p in (ROOT / 'experiments' / name / folder).glob('.*')
    ]
    assert leftovers == []


def test_trained_weights_are_tested_and_used(whole, runs, tmp_path):
    name, train_file = whole
    folder = train_file.parent
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
    done = run([sys.executable, str(ROOT / 'basicsr' / 'test.py'), '-opt', str(test_file)])
    assert done.returncode == 0, done.stdout
    assert 'params_ema' in done.stdout

    out = ROOT / 'results' / test_name
    measured = json.loads((out / 'metrics.json').read_text())['datasets']['Pairs']
    assert [image['name'] for image in measured['images']] == [str(index) for index in range(6)]
    for image in measured['images']:
        truth, degraded, restored = (
            cv2.imread(str(path)).astype(np.float64)
            for path in (
                folder / 'target' / f'{image["name"]}.png',
                folder / 'input' / f'{image["name"]}.png',
                out / 'visualization' / 'Pairs' / f'{image["name"]}.png',
            )
        )
        assert image['psnr'] == pytest.approx(10 * math.log10(255**2 / ((truth - restored) ** 2).mean()))
        assert image['input_psnr'] == pytest.approx(10 * math.log10(255**2 / ((truth - degraded) ** 2).mean()))
    mean = measured['mean']['psnr']
    assert mean == pytest.approx(np.mean([image['psnr'] for image in measured['images']]))
    assert f'{mean:.4f}' in done.stdout
    rows = list(csv.DictReader((out / 'metrics.csv').open()))
    assert len(rows) == 6 + 1 + 6 + 1 and float(rows[6]['psnr']) == pytest.approx(mean)
    without = out / 'visualization' / 'NoTruth'
    assert len(list(without.iterdir())) == 6

    # The demo restores the same pixels from the same weights, with nothing said about the network.
    weights = ROOT / 'experiments' / name / 'models' / 'net_g_latest.pth'
    done = run(
        [
            *(sys.executable, str(ROOT / 'demo.py'), '--task', 'Motion_Deblurring', '--device', 'cpu'),
            *('--input_dir', str(folder / 'input'), '--result_dir', str(tmp_path / 'restored')),
            *('--weights', str(weights), '--precision', 'fp32'),
        ]
    )
    assert done.returncode == 0, done.stdout
    for index in range(6):
        mine = cv2.imread(str(tmp_path / 'restored' / 'motion_deblurring' / f'{index}.png'))
        tested = cv2.imread(str(out / 'visualization' / 'Pairs' / f'{index}.png'))
        assert np.array_equal(mine, tested), np.unique(mine.astype(int) - tested, return_counts=True)


def test_figures_of_the_sets_before_one_that_fails_are_kept(whole, runs):
    name, _ = whole
    test_name, test_file = runs.option_file()
    content = yaml.safe_load(test_file.read_text())
    data = content['datasets']['val']
    broken = test_file.parent / 'broken'
    odd = os.fsdecode(b'stra\xdfe')  # no text in UTF-8
    for kind, root in (('lq', data['dataroot_lq']), ('gt', data['dataroot_gt'])):
        for folder, file in ((broken / kind, '0.png'), (test_file.parent / 'odd' / kind, f'{odd}.png')):
            folder.mkdir(parents=True)
            (folder / file).write_bytes((Path(root) / '0.png').read_bytes())
    (broken / 'lq' / '0.png').write_bytes(b'none')
    sets = {
        each: {f'dataroot_{kind}': str(test_file.parent / each / kind) for kind in ('lq', 'gt')}
        for each in ('odd', 'broken')
    }
    content['datasets'] = {
        'test': {**data, **sets['odd'], 'name': 'Odd'},
        'test_2': {**data, **sets['broken'], 'name': 'Broken'},
    }
    content['path'] = {'pretrain_network_g': f'experiments/{name}/models/net_g_latest.pth'}
    test_file.write_text(yaml.safe_dump(content))
    done = run([sys.executable, str(ROOT / 'basicsr' / 'test.py'), '-opt', str(test_file)])
    assert done.returncode == 1
    assert 'broken/lq/0.png: is empty' in done.stdout and 'Traceback' not in done.stdout
    out = ROOT / 'results' / test_name
    assert list(json.loads((out / 'metrics.json').read_text())['datasets']) == ['Odd']
    rows = list(csv.DictReader((out / 'metrics.csv').open()))
    assert [row['name'] for row in rows] == ['stra\\udcdfe', 'mean']
    assert 'stra\\udcdfe' in done.stdout


def test_two_processes_train_as_one(whole, runs):
    """The same samples, half of them in each process: the same loss curve and weights, up to rounding."""
    name, path = runs.option_file(mixing_augs={'mixup': False})
    alone, path_alone = runs.option_file(mixing_augs={'mixup': False})
    content = yaml.safe_load(path.read_text())
    train = content['datasets']['train']
    train.update(batch_size_per_gpu=2, mini_batch_sizes=[2, 1])
    path.write_text(yaml.safe_dump(content))
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = run([*launch, *command(path, '--launcher', 'pytorch')[1:]])
    assert done.returncode == 0, done.stdout
    done = run(command(path_alone))
    assert done.returncode == 0, done.stdout
    ours, theirs = results(name), results(alone)
    assert [entry['iter'] for entry in ours['history']] == [entry['iter'] for entry in theirs['history']]
    for one, other in zip(ours['history'], theirs['history'], strict=True):
        kinds = one.pop('kind'), other.pop('kind')
        assert kinds[0] == kinds[1] and one == pytest.approx(other, rel=2e-2)
    for key, tensor in theirs['weights']['params'].items():
        assert torch.allclose(ours['weights']['params'][key], tensor, atol=1e-3), key


def test_a_newcomer_without_the_data_is_told_how_to_get_it(runs):
    """With data that nobody has: the paper's training must not start here."""
    name = runs.name()
    place = 'Motion_Deblurring/Datasets/train/NoSuchSet'
    settings = [f'name={name}', *(f'datasets:train:dataroot_{kind}={place}/{kind}' for kind in ('lq', 'gt'))]
    done = subprocess.run(
        [*command(ROOT / 'options' / 'Deblurring_Restormer.yml'), '--force_yml', *settings],
        capture_output=True,
        text=True,
        cwd='/',
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert 'Motion_Deblurring/README.md' in said and 'Deblurring_Restormer_quickstart.yml' in said
    assert 'Traceback' not in said
    assert not (ROOT / 'experiments' / name).exists()


def test_the_quickstart(runs, tmp_path):
    """Its files as they are, but for the length and the places."""
    done = run(
        [sys.executable, str(ROOT / 'scripts' / 'synthesize_blur.py'), '--output', str(tmp_path / 'set')]
    )
    assert done.returncode == 0, done.stdout
    name, test_name = runs.name(), runs.name()

    def roots(phase, split):
        pairs = (('lq', 'input'), ('gt', 'target'))
        return [f'datasets:{phase}:dataroot_{kind}={tmp_path}/set/{split}/{folder}' for kind, folder in pairs]

    short = ['train:total_iter=2', 'train:scheduler:periods=[2]', 'datasets:train:iters=[1, 1]']
    settings = [f'name={name}', *short, *roots('train', 'train'), *roots('val', 'val')]
    done = run([*command(ROOT / 'options' / 'Deblurring_Restormer_quickstart.yml'), '--force_yml', *settings])
    assert done.returncode == 0, done.stdout
    weights = f'path:pretrain_network_g=experiments/{name}/models/net_g_latest.pth'
    done = run(
        [
            *(sys.executable, str(ROOT / 'basicsr' / 'test.py')),
            *('-opt', str(ROOT / 'options' / 'test' / 'Deblurring_quickstart.yml')),
            *('--force_yml', f'name={test_name}', weights, *roots('test', 'val')),
        ]
    )
    assert done.returncode == 0, done.stdout
    metrics = json.loads((ROOT / 'results' / test_name / 'metrics.json').read_text())
    figures = metrics['datasets']['SyntheticBlur']
    names = [f'{kind}{metric}' for kind in ('', 'input_') for metric in ('psnr', 'ssim_3d', 'ssim_2d')]
    assert sorted(figures['mean']) == sorted(names)
    assert [image['name'] for image in figures['images']] == ['chelsea-1', 'chelsea-2', 'coffee-1', 'coffee-2']
