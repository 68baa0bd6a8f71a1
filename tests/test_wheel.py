"""The installed package, away from the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import numpy as np
import pytest
import torch

from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.inference import Restorer
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.files import ROOT

NEEDED = 'basicsr', 'demo', 'Motion_Deblurring', 'setup.py', 'pyproject.toml', 'requirements.txt', 'README.md'
OPTIONS = """
name: tiny
custom_imports: [mine]
num_gpu: 0
datasets:
  train: {type: Dataset_PairedImage, dataroot_gt: pairs/target, dataroot_lq: pairs/input, gt_size: 16,
          batch_size_per_gpu: 1, num_worker_per_gpu: 0}
network_g: {type: Restormer, dim: 8, num_blocks: [1, 1, 1, 1], num_refinement_blocks: 1, heads: [1, 1, 2, 2]}
train: {total_iter: 1, optim_g: {type: AdamW, lr: 1.0e-3}, scheduler: {type: MultiStepLR, milestones: [5]},
        pixel_opt: {type: L1Loss}}
logger: {print_freq: 1, save_checkpoint_freq: 1}
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def restormer(tmp_path_factory):
    """The command of a wheel in an environment of its own, which sees the packages of this one; in an empty folder."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    alone = ['--no-index', '--no-deps']
    subprocess.run(
        [*pip, 'wheel', *alone, '--no-build-isolation', '-w', folder, source], check=True, cwd=folder
    )
    venv.create(folder / 'env', symlinks=True)
    python = folder / 'env' / 'bin' / 'python'
    (wheel,) = folder.glob('*.whl')
    subprocess.run([*pip, '--python', python, 'install', *alone, wheel], check=True)
    shutil.rmtree(source)
    (site,) = (folder / 'env').glob('lib/python*/site-packages')
    # In a .pth file, a folder's own .pth files do not count: this repository, installed editable, stays out of sight.
    (site / 'packages.pth').write_text(sysconfig.get_path('purelib'))
    work = folder / 'work'
    work.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}

    def run(*arguments):
        return subprocess.run(
            [python.with_name('restormer'), *map(str, arguments)],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    run.work, run.site = work, site
    return run


def test_a_picture_is_restored_with_the_weights_of_the_wheel(restormer):
    assert list(restormer.site.glob('basicsr/ops/*.c'))
    image = np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)
    write_png(restormer.work / 'photo.png', image)
    done = restormer('demo', '--input_dir', 'photo.png', '--result_dir', 'out', '--precision', 'fp32')
    assert done.returncode == 0, done.stderr
    assert 'site-packages/basicsr/shipped/Motion_Deblurring' in done.stdout
    expected = Restorer.from_checkpoint(precision='fp32')(image)
    result = read_image(restormer.work / 'out' / 'motion_deblurring' / 'photo.png').pixels
    np.testing.assert_allclose(result, expected, atol=1)  # another number of threads
    assert (result != image).any()


def test_the_wheel_brings_pictures_to_try(restormer):
    done = restormer('demo', '--help')
    assert 'shipped/demo/degraded' in ''.join(done.stdout.split())
    (shipped,) = restormer.work.parent.glob('env/lib/*/site-packages/basicsr/shipped/demo/degraded')
    assert {path.name for path in shipped.iterdir()} == {
        path.name for path in (ROOT / 'demo/degraded').iterdir()
    }


def test_runs_of_the_wheel_are_in_the_working_directory(restormer):
    for kind in ('input', 'target'):
        (restormer.work / 'pairs' / kind).mkdir(parents=True)
        write_png(restormer.work / 'pairs' / kind / '1.png', np.zeros((20, 20, 3), np.uint8))
    (restormer.work / 'tiny.yml').write_text(OPTIONS)
    (restormer.work / 'mine.py').touch()
    done = restormer('train', '-opt', 'tiny.yml')
    assert done.returncode == 0, done.stdout
    more = restormer('train', '-opt', 'tiny.yml', '--auto_resume', '--force_yml', 'train:total_iter=2')
    assert more.returncode == 0, more.stdout
    weights = load_weights(restormer.work / 'experiments' / 'tiny' / 'models' / 'net_g_2.pth')
    assert weights.params['output.weight'].dtype == torch.float32
    assert not (restormer.work.parent / 'env' / 'experiments').exists()


@pytest.mark.parametrize(
    'arguments, status, output',
    [
        ([], 2, 'the following arguments are required: PROGRAM'),
        (['dmo'], 2, "invalid choice: 'dmo'"),
        (['--help'], 0, 'restore photographs on a page in the browser'),
        (['test', '--help'], 0, 'usage: restormer test'),
        (
            ['demo', '--task', 'deraining'],
            2,
            'restormer demo: Deraining/pretrained_models/deraining.pth: found no',
        ),
    ],
)
def test_the_command_says_what_it_has(restormer, arguments, status, output):
    done = restormer(*arguments)
    assert done.returncode == status
    assert output in done.stdout + done.stderr
