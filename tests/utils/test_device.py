import contextlib
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from basicsr.utils import device
from basicsr.utils.device import (
    precision_name,
    repeatable,
    resolve_device,
    resolve_precision,
    without_tf32,
)
from basicsr.utils.errors import DeviceError


@pytest.fixture
def gpus(monkeypatch):
    def there_are(count, capability=(8, 0), mps=False):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)

    return there_are


@pytest.mark.parametrize(
    ('name', 'count', 'mps', 'device'),
    [
        ('auto', 2, False, 'cuda'),
        ('auto', 0, False, 'cpu'),
        ('auto', 0, True, 'mps'),
        ('cpu', 2, False, 'cpu'),
        (' CUDA:1 ', 2, False, 'cuda:1'),
        (torch.device('cuda', 0), 2, False, 'cuda:0'),
    ],
)
def test_devices(gpus, name, count, mps, device):
    gpus(count, mps=mps)
    assert resolve_device(name) == torch.device(device)


UNKNOWN = 'gpu', '', 'cuda:', 'cuda:-1', 'cuda:a', 'cuda0', 'cpu:1', 'auto:1', 'meta', 'xla'


@pytest.mark.parametrize(
    ('name', 'count', 'says'),
    [
        *((name, 2, f"found '{name}'; allowed: auto, cpu, mps, cuda, cuda:<number>") for name in UNKNOWN),
        ('cuda:7', 2, 'found cuda:7, which does not exist; there are: cuda:0, cuda:1'),
        ('cuda', 0, 'found cuda, but .*; allowed: auto, cpu'),
        ('cuda:0', 0, 'found cuda:0, but .*; allowed: auto, cpu'),
        ('mps', 0, 'found mps'),
    ],
)
def test_missing_and_unknown_devices_raise(gpus, name, count, says):
    gpus(count)
    with pytest.raises(DeviceError, match=f'^device: {says}'):
        resolve_device(name)


def test_cpu_does_not_initialise_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: pytest.fail('asked for CUDA'))
    assert resolve_precision('auto', resolve_device('cpu')) in (None, torch.bfloat16)


@pytest.mark.parametrize(
    ('name', 'device', 'capability', 'dtype'),
    [
        ('fp32', 'cpu', None, None),
        ('BF16', 'cpu', None, torch.bfloat16),
        ('auto', 'cuda', (8, 6), torch.bfloat16),
        ('auto', 'cuda', (8, 0), torch.bfloat16),
        ('auto', 'cuda', (7, 5), None),
        ('fp16', 'cuda', (7, 5), torch.float16),
        ('fp32', 'cuda', (8, 6), None),
        ('auto', 'mps', None, None),
    ],
)
def test_precisions(gpus, name, device, capability, dtype):
    gpus(1, capability)
    assert resolve_precision(name, torch.device(device)) is dtype
    assert precision_name(dtype) == (name.lower() if name != 'auto' else 'bf16' if dtype else 'fp32')


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('fp16', 'found fp16 on a CPU.*; allowed: auto, fp32, bf16'),
        ('int8', "found 'int8'; allowed: auto, fp32, bf16, fp16"),
    ],
)
def test_other_precisions_raise(name, says):
    with pytest.raises(DeviceError, match=says):
        resolve_precision(name, torch.device('cpu'))


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
        ('processor\t: 0\nflags\t\t: amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n', torch.bfloat16),
        ('processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni amx_tile\n', None),
        ('vmx flags\t: avx512_bf16\nflags\t\t: fpu\nbugs\t\t: amx_bf16\n', None),
        ('processor\t: 0\nFeatures\t: fp asimd\n', None),  # not an x86
        ('flags', None),
        (None, None),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_it_has_instructions_for_it(cpuinfo, monkeypatch, text, dtype):
    cpuinfo(text)
    assert resolve_precision('auto', torch.device('cpu')) is dtype
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)  # the library that has them
    assert resolve_precision('auto', torch.device('cpu')) is None


NEW = hasattr(torch.backends.cuda.matmul, 'fp32_precision')  # PyTorch 2.9 and later
SETTINGS = {
    'nothing': lambda: None,
    'old matmul': lambda: setattr(torch.backends.cuda.matmul, 'allow_tf32', True),
    'old cudnn': lambda: setattr(torch.backends.cudnn, 'allow_tf32', False),
    'high': lambda: torch.set_float32_matmul_precision('high'),
}
if NEW:
    SETTINGS |= {
        'matmul': lambda: setattr(torch.backends.cuda.matmul, 'fp32_precision', 'tf32'),
        'matmul, then high': lambda: (SETTINGS['matmul'](), SETTINGS['high']()),
        'convolutions': lambda: setattr(torch.backends.cudnn.conv, 'fp32_precision', 'ieee'),
        'cudnn': lambda: setattr(torch.backends.cudnn, 'fp32_precision', 'tf32'),
        'all': lambda: setattr(torch.backends, 'fp32_precision', 'tf32'),
        'all exact': lambda: setattr(torch.backends, 'fp32_precision', 'ieee'),
        'all and matmul': lambda: (SETTINGS['all'](), SETTINGS['matmul']()),
    }


def tf32_is_off():
    if NEW:
        return {torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision} == {'ieee'}
    return not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def precisions():
    """Values of all settings; None where reading one raises, as PyTorch does if old and new settings disagree."""

    def read(owner, name):
        with contextlib.suppress(RuntimeError):
            return getattr(owner, name)

    backends = torch.backends
    found = [read(owner, 'allow_tf32') for owner in (backends.cudnn, backends.cuda.matmul)]
    if NEW:
        owners = (backends, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        found += [read(owner, 'fp32_precision') for owner in (*owners, backends.mkldnn, backends.mkldnn.matmul)]
    return found


def _use(settings, answers, enter):
    SETTINGS[settings]()
    if enter:
        with contextlib.suppress(KeyError), without_tf32(torch.device('cuda')):
            answers.put(tf32_is_off())
            raise KeyError
    found = [precisions()]
    for value in ('ieee', 'tf32', 'none') if NEW else ():  # what had followed a more general setting still does
        for owner in (torch.backends, torch.backends.cudnn):
            owner.fp32_precision = value
            found.append(precisions())
    answers.put(found)


@pytest.mark.parametrize('settings', SETTINGS)
def test_without_tf32_restores_any_settings(settings):
    """In processes of their own, as a setting cannot be unset."""
    fork = multiprocessing.get_context('fork')
    answers = fork.SimpleQueue()
    for enter in (True, False):
        process = fork.Process(target=_use, args=(settings, answers, enter))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    off, after, never = answers.get(), answers.get(), answers.get()
    assert off
    assert after == never


def test_without_tf32_before_pytorch_2_9(monkeypatch):
    matmul, cudnn = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends.cuda, 'matmul', matmul)
    monkeypatch.setattr(torch.backends, 'cudnn', cudnn)
    with device._no_tf32().within():
        assert not matmul.allow_tf32 and not cudnn.allow_tf32
    assert matmul.allow_tf32 and cudnn.allow_tf32


@pytest.mark.parametrize('first', [0, 1])
def test_without_tf32_until_the_last_thread_leaves(first):
    before = precisions()
    threads = [without_tf32(torch.device('cuda')) for _ in range(2)]
    for thread in threads:
        thread.__enter__()
        assert tf32_is_off()
    threads[first].__exit__(None, None, None)
    assert tf32_is_off()
    threads[1 - first].__exit__(None, None, None)
    assert precisions() == before


def test_contexts_do_nothing_on_a_cpu():
    def settings():
        return precisions(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic

    before = settings()
    with without_tf32(torch.device('cpu')), repeatable(torch.device('cpu')):
        assert settings() == before


@pytest.mark.parametrize('before', [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_repeatable(monkeypatch, before):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, 'benchmark', before[0])
    monkeypatch.setattr(cudnn, 'deterministic', before[1])
    with pytest.raises(KeyError), repeatable(torch.device('cuda')):
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        raise KeyError
    assert (cudnn.benchmark, cudnn.deterministic) == before
