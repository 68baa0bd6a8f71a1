import ast
import os
import re
import subprocess
import sys

import pytest
import torch

from basicsr.options.load import read_options
from basicsr.tasks import TASKS
from basicsr.utils.files import ROOT, resolve
from basicsr.utils.registry import ARCH_REGISTRY

# Import name → name of the distribution, where they differ.
DISTRIBUTIONS = {
    'cv2': 'opencv-python-headless',
    'yaml': 'pyyaml',
    'skimage': 'scikit-image',
    'PIL': 'pillow',
    'typing_extensions': 'pydantic',  # which needs both itself
    'pydantic_core': 'pydantic',  # which pins its version
    'triton': 'torch',  # whose builds for CUDA bring it; basicsr.ops does without it elsewhere
}
OWN = {'basicsr', 'scripts'}
# In extras: programs name them where they are missing.
OPTIONAL = {'onnx', 'onnxruntime', 'gdown', 'pillow_heif', 'h5py', 'lpips', 'gradio', 'starlette'}
PATTERNS = 'basicsr/**/*.py', 'scripts/**/*.py', 'demo.py', *(f'{task.folder}/*.py' for task in TASKS.values())
SOURCES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
PUBLISHED_TESTS = ['GoPro', 'HIDE', 'RealBlur_J', 'RealBlur_R']


def relative(path):
    return path.relative_to(ROOT).as_posix()


def requirements():
    lines = (line.partition('#')[0].strip() for line in (ROOT / 'requirements.txt').read_text().splitlines())
    return {re.match(r'[\w.-]+', line)[0].lower() for line in lines if line}


@pytest.fixture(scope='module')
def pyproject():
    tomllib = pytest.importorskip('tomllib')  # from Python 3.11 on
    return tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))


# Dependencies


def test_requirements_are_listed_once(pyproject):
    assert 'dependencies' not in pyproject['project']
    assert 'dependencies' in pyproject['project']['dynamic']
    assert pyproject['tool']['setuptools']['dynamic']['dependencies'] == {'file': ['requirements.txt']}
    assert 'install_requires' not in (ROOT / 'setup.py').read_text()


def imports(path):
    """Top-level names of all absolute imports of a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition('.')[0]


@pytest.mark.parametrize('path', SOURCES, ids=relative)
def test_every_import_is_declared(path):
    foreign = set(imports(path)) - sys.stdlib_module_names - OWN - OPTIONAL
    assert {DISTRIBUTIONS.get(name, name).lower() for name in foreign} <= requirements()


# Python


def test_the_oldest_python_is_stated_once(pyproject):
    assert pyproject['project']['requires-python'] == '>=3.10'
    assert pyproject['tool']['ruff']['target-version'] == 'py310'


@pytest.mark.parametrize('path', [*SOURCES, ROOT / 'setup.py'], ids=relative)
def test_the_oldest_python_can_read_it(path):
    ast.parse(path.read_bytes(), feature_version=(3, 10))


# setup.py


@pytest.mark.parametrize('status', [0, 7])
def test_setup_py_develop_is_pip(tmp_path, status):
    """As people type it, from another folder, and where setuptools is missing or fails."""
    (tmp_path / 'setuptools.py').write_text('raise ImportError("setuptools was imported")')
    (tmp_path / 'pip.py').write_text(
        f'import pathlib, sys\npathlib.Path("called").write_text("|".join(sys.argv[1:]))\nsys.exit({status})'
    )
    done = subprocess.run(
        [sys.executable, ROOT / 'setup.py', 'develop', '--no_cuda_ext'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, '')
    assert (tmp_path / 'called').read_text() == f'install|-e|{ROOT}'


# Option files


@pytest.mark.parametrize('name', PUBLISHED_TESTS)
def test_option_files_of_tests_are_of_the_published_network(name):
    options = read_options(ROOT / 'options' / 'test' / f'Deblurring_{name}.yml')
    assert options.name == f'Deblurring_{name}'
    with torch.device('meta'):
        net = ARCH_REGISTRY.build(options.network_g)
    assert sum(parameter.numel() for parameter in net.parameters()) == 26_126_644
    task = TASKS['motion_deblurring']
    assert resolve(options.path.pretrain_network_g) == task.published_file()

    assert list(options.datasets) == ['test']
    dataset = options.datasets['test']
    folder = ROOT / task.folder / 'Datasets' / 'test' / name
    assert (resolve(dataset.dataroot_lq), resolve(dataset.dataroot_gt)) == (folder / 'input', folder / 'target')

    metrics = {key: metric.type for key, metric in options.val.metrics.items()}
    wanted = {'psnr': 'calculate_psnr', 'ssim_3d': 'calculate_ssim_3d', 'ssim_2d': 'calculate_ssim'}
    assert metrics.items() >= wanted.items()
