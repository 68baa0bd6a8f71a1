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
def groups(tmp_path, monkeypatch):
    """`groups(membership, folder={file: content}, …)`: the free memory in these control groups."""
    monkeypatch.setattr(memory, '_CGROUPS', tmp_path / 'cgroup')
    monkeypatch.setattr(memory, '_MEMBERSHIP', tmp_path / 'self')
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=AVAILABLE))

    def free(*membership, **folders):
        (tmp_path / 'self').write_text(''.join(f'{line}\n' for line in membership))
        for folder, files in folders.items():
            path = tmp_path / 'cgroup' / folder
            path.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (path / name).write_text(f'{content}\n')
        return free_memory(CPU)

    return free


def v2(limit, used, inactive=0):
    statistics = f'anon 5\ninactive_file {inactive}\nactive_file 7'
    return {'memory.max': limit, 'memory.current': used, 'memory.stat': statistics}


def v1(limit, used, inactive=0):
    # `inactive_file` counts the group alone, `total_inactive_file` also the groups in it.
    statistics = f'cache 5\ninactive_file 1\ntotal_inactive_file {inactive}'
    limit = 2**63 - 4096 if limit == 'max' else limit
    return {'memory.limit_in_bytes': limit, 'memory.usage_in_bytes': used, 'memory.stat': statistics}


VERSIONS = pytest.mark.parametrize(
    ('version', 'root', 'line'), [(v1, 'memory', '5:memory:'), (v2, '', '0::')], ids=['v1', 'v2']
)


def test_at_most_the_memory_of_the_system():
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize('line', ['0::/', '0::/some/where', '1:name=systemd:/', '5:cpu,cpuacct:/'])
def test_no_limit_gives_the_available_memory(groups, line):
    assert groups(line) == AVAILABLE


def test_no_control_groups_give_the_available_memory(groups):
    assert free_memory(CPU) == AVAILABLE  # the list of this process's groups does not exist


@VERSIONS
@pytest.mark.parametrize(
    ('limit', 'used', 'inactive', 'free'),
    [
        (500, 100, 0, 400),
        (500, 100, 60, 460),  # pages of files that the kernel gives up when asked
        (5000, 100, 0, AVAILABLE),
        ('max', 100, 0, AVAILABLE),
        (500, 700, 0, 0),  # lowered while in use
        (500, 700, 250, 50),
    ],
)
def test_limit_of_a_group(groups, version, root, line, limit, used, inactive, free):
    assert (
        groups(f'{line}/batch/job', **{f'{root}/batch/job'.lstrip('/'): version(limit, used, inactive)}) == free
    )


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
def test_tightest_of_nested_groups_counts(groups, outer, middle, inner, free):
    limits = {'': outer, 'a': middle, 'a/b.slice': inner, 'a/sister': 20, '..': 20}  # the last two do not count
    files = {folder: v2(limit, 10) for folder, limit in limits.items() if limit is not None}
    assert groups('0::/a/b.slice', **files) == free


@VERSIONS
def test_inside_a_container(groups, version, root, line):
    """The path is the host's, and what is mounted is the group itself, as the root."""
    assert groups(f'{line}/kubepods/pod1/abc', **{root: version(500, 100)}) == 400


def test_both_versions_at_once(groups):
    lines = (
        '12:pids:/d/abc',
        '11:cpu,cpuacct:/d/abc',
        '10:net_cls,memory:/d/a:b',
        '1:name=systemd:/d/a:b',
        '0::/d/abc',
    )
    assert groups(*lines, **{'memory/d/a:b': v1(500, 100), 'cpu/d/abc': v1(50, 10)}) == 400  # cpu is not asked
    assert groups(*lines, **{'d/abc': v2(300, 100)}) == 200


def test_similar_controller_names_are_ignored(groups):
    assert groups('3:memory2:/', '2:name=memory:/', memory=v1(50, 10)) == AVAILABLE


@VERSIONS
@pytest.mark.parametrize('missing', ['max', 'current', 'limit_in_bytes', 'usage_in_bytes'])
def test_missing_files_mean_no_limit(groups, version, root, line, missing):
    files = version(500, 100)
    was_there = files.pop(f'memory.{missing}', None)
    assert groups(f'{line}/', **{root: files}) == (400 if was_there is None else AVAILABLE)


@VERSIONS
@pytest.mark.parametrize(
    'told', [None, 'anon 5', '', 'inactive_file many\ntotal_inactive_file many', 'of another kind']
)
def test_missing_statistics_mean_no_cached_files(groups, version, root, line, told):
    files = version(500, 100) | {'memory.stat': told}
    assert groups(f'{line}/', **{root: {name: text for name, text in files.items() if text is not None}}) == 400


@pytest.mark.parametrize('device', ['mps', 'meta'])
def test_unknown_on_other_devices(device):
    assert free_memory(torch.device(device)) is None


@pytest.mark.parametrize('name', ['cuda', 'cuda:1'])
def test_gpu_memory_cached_by_this_process_is_free(monkeypatch, name):
    device = torch.device(name)
    # By the index: PyTorch 2.4 does not take a device without one.
    monkeypatch.setattr(torch.cuda, 'mem_get_info', {device.index: (1000, 8000)}.__getitem__)
    monkeypatch.setattr(torch.cuda, 'memory_reserved', {device: 500}.__getitem__)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', {device: 200}.__getitem__)
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


@pytest.mark.parametrize('kernel', ['without huge pages', 'that refuses them'])
def test_empty_on_a_kernel(monkeypatch, kernel):
    class Refusing(memory.mmap.mmap):
        def madvise(self, *arguments):
            raise OSError('no such advice')

    if kernel == 'without huge pages':
        monkeypatch.delattr(memory.mmap, 'MADV_HUGEPAGE', raising=False)
    else:
        monkeypatch.setattr(memory.mmap, 'mmap', Refusing)
    assert empty(torch.bfloat16, CPU, 4, 3).zero_().shape == (4, 3)


MEASURE = """
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


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='reads the size of a process from /proc')
def test_free_memory_returns_what_keep_all_memory_kept():
    """In a process of its own, as it keeps memory from then on."""
    done = subprocess.run([sys.executable, '-c', MEASURE], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    if kept < 5e8:
        pytest.skip('this C library has no such setting')
    assert left < 1e8
