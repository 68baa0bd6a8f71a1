import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from basicsr.utils import memory
from basicsr.utils.files import ROOT
from basicsr.utils.memory import empty, free_memory

CPU = torch.device('cpu')
AVAILABLE = 1000


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Control groups of one's own: `group(folder, name=content, …)` makes files, '_' in a name for '.', and
    `group.of(line, …)` says which this process is in."""

    def make(folder, **contents):
        path = tmp_path / 'cgroup' / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (path / name.replace('_', '.', 1)).write_text(f'{content}\n')

    def belong(*lines):
        (tmp_path / 'self').write_text(''.join(f'{line}\n' for line in lines))

    make.of = belong
    monkeypatch.setattr(memory, '_CGROUPS', tmp_path / 'cgroup')
    monkeypatch.setattr(memory, '_MEMBERSHIP', tmp_path / 'self')
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=AVAILABLE))
    return make


def two(limit, used, inactive=0):
    return {
        'memory_max': limit,
        'memory_current': used,
        'memory_stat': f'anon 5\ninactive_file {inactive}\nactive_file 7',
    }


def one(limit, used, inactive=0):
    return {
        'memory_limit_in_bytes': limit,
        'memory_usage_in_bytes': used,
        # Of the group alone, and with the groups in it.
        'memory_stat': f'cache 5\ninactive_file 1\ntotal_inactive_file {inactive}',
    }


def test_at_most_the_memory_of_the_system():
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize('line', ['0::/', '0::/some/where', '1:name=systemd:/', '5:cpu,cpuacct:/'])
def test_no_limit_gives_the_available_memory(group, line):
    group.of(line)
    assert free_memory(CPU) == AVAILABLE


def test_no_control_groups_give_the_available_memory(group):
    assert free_memory(CPU) == AVAILABLE


@pytest.mark.parametrize(
    ('limit', 'used', 'inactive', 'free'),
    [
        (500, 100, 0, 400),
        (500, 100, 60, 460),  # pages of files that the kernel gives up when asked
        (5000, 100, 0, AVAILABLE),
        ('max', 100, 0, AVAILABLE),
        (500, 500, 0, 0),
        (500, 700, 0, 0),  # lowered while in use
        (500, 700, 250, 50),
    ],
)
@pytest.mark.parametrize('version', [1, 2])
def test_limit_of_a_group(group, version, limit, used, inactive, free):
    if version == 2:
        group('batch/job', **two(limit, used, inactive))
        group.of('0::/batch/job')
    else:
        group('memory/docker/abc', **one(2**63 - 4096 if limit == 'max' else limit, used, inactive))
        group.of('5:memory:/docker/abc')
    assert free_memory(CPU) == free


@pytest.mark.parametrize(
    ('outer', 'middle', 'inner', 'free'),
    [
        ('max', 300, 'max', 290),
        (250, 300, 400, 240),
        (400, 300, 250, 240),
        ('max', 'max', 'max', AVAILABLE),
        (None, None, 300, 290),
        (300, None, None, 290),
    ],
)
def test_tightest_of_nested_groups_counts(group, outer, middle, inner, free):
    for folder, limit in (('', outer), ('a', middle), ('a/b.slice', inner)):
        group(folder, **({} if limit is None else two(limit, 10)))
    group('a/sister', **two(20, 10))
    group.of('0::/a/b.slice')
    assert free_memory(CPU) == free


def test_folder_above_the_groups_is_ignored(group, tmp_path):
    for name, content in two(20, 10).items():
        (tmp_path / name.replace('_', '.', 1)).write_text(str(content))
    group.of('0::/')
    assert free_memory(CPU) == AVAILABLE


@pytest.mark.parametrize('version', [1, 2])
def test_inside_a_container(group, version):
    """The path is the host's, and what is mounted is the group itself, as the root."""
    if version == 2:
        group('', **two(500, 100))
        group.of('0::/kubepods/pod1/abc')
    else:
        group('memory', **one(500, 100))
        group.of('4:memory:/kubepods/pod1/abc')
    assert free_memory(CPU) == 400


def test_both_versions_at_once(group):
    group('memory/docker/a:b', **one(500, 100))
    group('cpu/docker/abc', **one(50, 10))  # is not asked
    group.of(
        '12:pids:/docker/abc',
        '11:cpu,cpuacct:/docker/abc',
        '10:net_cls,memory:/docker/a:b',
        '1:name=systemd:/docker/a:b',
        '0::/docker/abc',
    )
    assert free_memory(CPU) == 400
    group('docker/abc', **two(300, 100))
    assert free_memory(CPU) == 200


def test_similar_controller_names_are_ignored(group):
    group('memory', **one(50, 10))
    group.of('3:memory2:/', '2:name=memory:/')
    assert free_memory(CPU) == AVAILABLE


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('missing', ['memory_max', 'memory_current', 'memory_limit_in_bytes'])
def test_missing_files_mean_no_limit(group, version, missing):
    files = one(500, 100) if version == 1 else two(500, 100)
    without = {name: content for name, content in files.items() if name != missing}
    group('memory' if version == 1 else '', **without)
    group.of('1:memory:/' if version == 1 else '0::/')
    assert free_memory(CPU) == (400 if files == without else AVAILABLE)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize(
    'told', ['anon 5', '', 'inactive_file many\ntotal_inactive_file many', 'of another kind']
)
def test_missing_statistics_mean_no_cached_files(group, version, told):
    files = one(500, 100) if version == 1 else two(500, 100)
    files['memory_stat'] = told
    group('memory' if version == 1 else '', **files)
    group.of('1:memory:/' if version == 1 else '0::/')
    assert free_memory(CPU) == 400


def test_limit_counts_without_statistics(group):
    files = two(500, 100)
    del files['memory_stat']
    group('', **files)
    group.of('0::/')
    assert free_memory(CPU) == 400


@pytest.mark.parametrize('device', ['mps', 'meta', 'xpu'])
def test_unknown_on_other_devices(device):
    assert free_memory(torch.device(device)) is None


@pytest.mark.parametrize('name', ['cuda', 'cuda:1'])
def test_gpu_memory_cached_by_this_process_is_free(monkeypatch, name):
    device = torch.device(name)

    def says(value):
        def function(asked):
            assert asked == device
            return value

        return function

    free = {device.index: (1000, 8000)}  # by the index: PyTorch 2.4 does not take a device without one
    monkeypatch.setattr(torch.cuda, 'mem_get_info', free.__getitem__)
    monkeypatch.setattr(torch.cuda, 'memory_reserved', says(500))
    monkeypatch.setattr(torch.cuda, 'memory_allocated', says(200))
    assert free_memory(device) == 1300


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('shape', [(5,), (3, 7, 2), (1000, 700)])
def test_empty_can_be_written_to(dtype, shape):
    memory = empty(dtype, CPU, *shape)
    assert (memory.dtype, memory.shape, memory.device) == (dtype, torch.Size(shape), CPU)
    assert memory.is_contiguous()
    other = empty(dtype, CPU, *shape)
    values = torch.rand(shape).to(dtype)
    memory.copy_(values)
    other.zero_()
    part = memory[-1:]
    del memory  # what is left of it is still good
    assert torch.equal(part, values[-1:])


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='elsewhere it is plain torch.empty')
def test_empty_raises_memory_error():
    with pytest.raises(MemoryError):
        empty(torch.float32, CPU, 1 << 28, 1 << 30)


def test_empty_without_huge_pages(monkeypatch):
    monkeypatch.delattr(memory.mmap, 'MADV_HUGEPAGE', raising=False)
    assert empty(torch.bfloat16, CPU, 4, 3).zero_().shape == (4, 3)


def test_empty_on_a_kernel_that_refuses_huge_pages(monkeypatch):
    class Refusing(memory.mmap.mmap):
        def madvise(self, *arguments):
            raise OSError('no such advice')

    monkeypatch.setattr(memory.mmap, 'mmap', Refusing)
    assert empty(torch.float32, CPU, 4, 3).zero_().shape == (4, 3)


@pytest.mark.skipif(
    not Path('/proc/self/statm').exists(), reason='the size of a process is read by way of /proc'
)
def test_free_memory_returns_what_keep_all_memory_kept():
    """In a process of its own, as it keeps memory from then on."""
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import psutil, torch
from basicsr.utils.memory import free_memory, keep_all_memory
keep_all_memory()
size = lambda: psutil.Process().memory_info().rss
before = size()
tensors = [torch.ones(4_000_000) for _ in range(50)]
del tensors
kept = size()
free_memory(torch.device('cpu'))
print(kept - before, size() - before)
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    if kept < 5e8:
        pytest.skip('this C library has no such setting')
    assert left < 1e8
