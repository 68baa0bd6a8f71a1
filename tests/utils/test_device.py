import subprocess
import sys
from pathlib import Path

import pytest
import torch

from basicsr.utils.device import (
    PRECISIONS,
    DeviceError,
    precision_name,
    resolve_device,
    resolve_precision,
    without_tf32,
)
from basicsr.utils.files import ROOT


@pytest.fixture
def gpus(monkeypatch):
    def there_are(count, capability=(8, 0)):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)

    return there_are


def test_auto_takes_what_there_is(gpus, monkeypatch):
    gpus(2)
    assert resolve_device() == torch.device('cuda')
    gpus(0)
    assert resolve_device('auto') == torch.device('cpu')
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert resolve_device('auto') == torch.device('mps')


def test_named_devices(gpus):
    gpus(2)
    assert resolve_device('cpu') == torch.device('cpu')
    assert resolve_device(' CUDA:1 ') == torch.device('cuda:1')
    assert resolve_device(torch.device('cuda', 0)) == torch.device('cuda:0')


@pytest.mark.parametrize(
    'name', ['gpu', '', 'cuda:', 'cuda:-1', 'cuda:a', 'cuda0', 'cpu:1', 'auto:1', 'meta', 'xla']
)
def test_nonsense_names_what_is_allowed(gpus, name):
    gpus(2)
    with pytest.raises(DeviceError, match='allowed: auto, cpu, mps, cuda, cuda:<number>'):
        resolve_device(name)


def test_a_gpu_that_is_not_there(gpus):
    gpus(2)
    with pytest.raises(DeviceError, match=r'found cuda:7, which does not exist; there are: cuda:0, cuda:1'):
        resolve_device('cuda:7')
    gpus(0)
    for name in ('cuda', 'cuda:0'):
        with pytest.raises(DeviceError, match=f'found {name}, but .*; allowed: auto, cpu'):
            resolve_device(name)
    with pytest.raises(DeviceError, match='found mps'):
        resolve_device('mps')


def test_cpu_leaves_cuda_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: pytest.fail('asked for CUDA'))
    assert resolve_precision('auto', resolve_device('cpu')) in (None, torch.bfloat16)


def test_importing_does_not_start_cuda():
    code = (
        'import torch\n'
        'from basicsr.utils.device import resolve_device\n'
        'resolve_device("cpu")\n'
        'assert not torch.cuda.is_initialized()'
    )
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_precision_on_a_cpu():
    cpu = torch.device('cpu')
    assert resolve_precision('fp32', cpu) is None
    assert resolve_precision('BF16', cpu) == torch.bfloat16
    with pytest.raises(DeviceError, match=r'found fp16 on a CPU.*; allowed: auto, fp32, bf16'):
        resolve_precision('fp16', cpu)
    with pytest.raises(DeviceError, match="found 'int8'; allowed: auto, fp32, bf16, fp16"):
        resolve_precision('int8', cpu)


def test_precision_on_a_gpu(gpus):
    cuda = torch.device('cuda')
    gpus(1, capability=(8, 6))
    assert resolve_precision('auto', cuda) == torch.bfloat16
    gpus(1, capability=(7, 5))
    assert resolve_precision('auto', cuda) is None
    assert resolve_precision('fp16', cuda) == torch.float16
    assert resolve_precision('fp32', cuda) is None


@pytest.fixture
def cpuinfo(monkeypatch):
    """What the system says of its processors; None: nothing."""

    def says(text):
        def read_text(path, *arguments, **options):
            assert path == Path('/proc/cpuinfo')
            if text is None:
                raise FileNotFoundError(2, 'No such file or directory', str(path))
            return text

        monkeypatch.setattr(Path, 'read_text', read_text)
        monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)

    return says


@pytest.mark.parametrize(
    ('text', 'dtype'),
    [
        ('processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse4_2\n', torch.bfloat16),
        ('processor\t: 0\nflags\t\t: fpu amx_bf16\n', torch.bfloat16),
        ('processor\t: 0\nflags\t\t: amx_bf16 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n', torch.bfloat16),
        ('processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni amx_tile\n', None),
        ('vmx flags\t: avx512_bf16\nflags\t\t: fpu\nbugs\t\t: amx_bf16\n', None),
        ('processor\t: 0\nFeatures\t: fp asimd\n', None),  # not an x86
        ('flags', None),
        ('', None),
        (None, None),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_it_has_instructions_for_it(cpuinfo, text, dtype):
    cpuinfo(text)
    cpu = torch.device('cpu')
    assert resolve_precision('auto', cpu) is dtype
    assert resolve_precision('fp32', cpu) is None
    assert resolve_precision('bf16', cpu) is torch.bfloat16


def test_auto_on_a_cpu_without_the_library_that_has_them(cpuinfo, monkeypatch):
    cpuinfo('flags : amx_bf16 avx512_bf16')
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert resolve_precision('auto', torch.device('cpu')) is None


def test_auto_on_other_devices():
    assert resolve_precision('auto', torch.device('mps')) is None


@pytest.mark.parametrize(
    ('dtype', 'name'),
    [(None, 'fp32'), (torch.bfloat16, 'bf16'), (torch.float16, 'fp16'), (torch.float32, 'fp32')],
)
def test_precision_name(dtype, name):
    assert precision_name(dtype) == name


@pytest.mark.parametrize('name', PRECISIONS[1:])
def test_precisions_there_and_back(name):
    assert precision_name(resolve_precision(name, torch.device('cuda'))) == name


def test_without_tf32_on_a_gpu_and_only_inside():
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [library.allow_tf32 for library in libraries]
    with pytest.raises(KeyError), without_tf32(torch.device('cuda')):
        assert not any(library.allow_tf32 for library in libraries)
        raise KeyError
    # Two threads, of which the first to come is the first to go.
    one, other = (without_tf32(torch.device('cuda')) for _ in range(2))
    for each in (one.__enter__, other.__enter__, lambda: one.__exit__(None, None, None)):
        each()
        assert not any(library.allow_tf32 for library in libraries)
    other.__exit__(None, None, None)
    with without_tf32(torch.device('cpu')):
        assert [library.allow_tf32 for library in libraries] == before
    assert [library.allow_tf32 for library in libraries] == before
