"""The memory check finds the largest stage, leaves no trace, and refuses with advice."""

from __future__ import annotations

import copy
import logging
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from kill_and_resume import ROOT, options

from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import TrainingBatches, TrainingOrder, stages_of
from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.options.load import read_options
from basicsr.training import preflight
from basicsr.training.preflight import check_memory
from basicsr.utils.cli import run
from basicsr.utils.dist import Rank
from basicsr.utils.errors import PreflightError
from basicsr.utils.logger import get_logger


@pytest.fixture
def prepare(runs, tmp_path):
    """A model, its stages, the order of its samples, and the set."""

    def prepare(first=1, *, stages=None, **train):
        content = options(tmp_path, 'unit', **train)
        if stages:
            names = ('gt_sizes', 'mini_batch_sizes', 'iters')
            content['datasets']['train'].update(zip(names, map(list, zip(*stages, strict=True)), strict=True))
        path = tmp_path / 'options.yml'
        path.write_text(yaml.safe_dump(content))
        checked = read_options(path)
        model = ImageCleanModel(checked, torch.device('cpu'), Rank())
        stages = stages_of(checked.datasets['train'])
        batches = TrainingBatches(TrainingOrder(6, 5), stages, first, sum(stages.iters))
        data = Dataset_PairedImage(str(tmp_path / 'input'), str(tmp_path / 'target'))
        return model, stages, batches, data

    return prepare


STAGES = [(16, 32, 5), (32, 12, 6), (48, 4, 5), (64, 1, 4)]  # of about 8, 12, 9 and 4 thousand pixels
EQUAL = [(32, 4, 5), (64, 1, 5), (16, 8, 5)]  # as in the paper's recipe: only the first could use fewer patches


@pytest.mark.parametrize(
    ('stages', 'first', 'checkpointing', 'largest'),
    [
        (STAGES, 1, False, [1]),
        (STAGES, 12, False, [2]),
        (STAGES, 17, False, [3]),
        (STAGES, 1, True, [1]),
        (STAGES, 1, [False, True, False, True], [1, 2]),
        (STAGES, 17, [False, True, False, True], [3]),
        (EQUAL, 1, False, [1]),
    ],
)
def test_the_largest_remaining_stage_of_each_kind_is_tried(
    prepare, monkeypatch, stages, first, checkpointing, largest
):
    model, *rest = prepare(first, stages=stages, activation_checkpointing=checkpointing)
    tried = []
    monkeypatch.setattr(preflight, '_rehearse', lambda _, batch, stage: (tried.append(stage), ''))
    check_memory(model, *rest)
    assert tried == largest


def test_a_run_resumed_with_larger_batches_starts_with_its_next_sample(prepare):
    """Iteration 4 begins with sample 12; if earlier batches had been as large, it would be 48."""
    model, stages, _, data = prepare()
    batches = TrainingBatches(TrainingOrder(6, 5), stages, 4, 5, accumulate=4, first_sample=12)
    seen = []

    class Recorder:
        def __getitem__(self, key):
            seen.append(key.number)
            return data[key]

    check_memory(model, stages, batches, Recorder())
    assert seen == [12, 13, 14, 15]


def test_ranks_of_one_node_share_its_memory(prepare, monkeypatch):
    model, *rest = prepare()
    monkeypatch.setattr(preflight, '_estimate', lambda *_: 300)
    monkeypatch.setattr(preflight, '_later', lambda _: 0)
    monkeypatch.setattr(preflight, 'free_memory', lambda _: 500)
    check_memory(model, *rest)
    three = [('elsewhere', 300), (platform.node(), 300), (platform.node(), 300)]
    real = Rank.gather
    monkeypatch.setattr(Rank, 'gather', lambda self, it: three if isinstance(it, tuple) else real(self, it))
    with pytest.raises(PreflightError, match='does not fit'):
        check_memory(model, *rest)


def test_a_network_that_cannot_be_compiled_is_refused(prepare, monkeypatch):
    def refuse(*_):
        raise RuntimeError('no compiler')

    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda net, **how: real(net, backend=refuse, **how))
    with pytest.raises(
        PreflightError, match=r'train\.compile: found true, but .*no compiler.*; allowed: false'
    ):
        check_memory(*prepare(compile=True))


def test_the_state_of_the_run_does_not_change(prepare):
    model, *rest = prepare(ema_decay=0.9)
    model.net.register_buffer('seen', torch.zeros(2))  # as a batch norm would
    real = model.net.forward
    model.net.forward = lambda x: (model.net.seen.add_(1), real(x))[1]
    before = copy.deepcopy(model.state())
    check_memory(model, *rest)
    after = model.state()
    assert all(torch.equal(before['net'][name], tensor) for name, tensor in after['net'].items())
    assert all(map(torch.equal, before['averaged'], after['averaged']))
    assert after['optimizer']['state'] == {} and after['steps_summed'] == 0 and not model.first_bad
    assert all(parameter.grad is None for parameter in model.parameters)


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')
def test_the_cpu_estimate_is_close_to_a_step(prepare):
    """Compared with the growth of a process that does nothing else."""
    script = f"""
import sys; sys.path[:0] = ['{ROOT}', '{ROOT / 'tests'}']
import torch
from basicsr.archs.restormer_arch import Restormer
from pathlib import Path
torch.set_num_threads(1)
net = Restormer(dim=16, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 2, 2])
def step(size, patch):
    x = torch.rand(size, 3, patch, patch).contiguous(memory_format=torch.channels_last)
    (net(x) - x * 0.5).abs().mean().backward()
step(1, 16)
def peak():  # not ru_maxrss, which begins with that of the process that started this one
    return next(1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
before = peak()
step(4, 160)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    model, *_ = prepare()
    from basicsr.archs.restormer_arch import Restormer

    model.net = Restormer(dim=16, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 2, 2])
    image = torch.zeros(4, 3, 160, 160, dtype=torch.uint8)
    estimate = preflight._estimate(model, {'lq': image, 'gt': image})
    assert 0.8 < estimate / int(done.stdout) < 1.6


@pytest.mark.parametrize(
    ('train', 'advice'),
    [
        ({}, ['by 2 and set train.accumulate to 2', 'gt_sizes', 'activation_checkpointing', 'bf16']),
        (
            {'accumulate': 3, 'precision': 'bf16'},
            ['by 2 and set train.accumulate to 6', 'gt_sizes', 'activation_checkpointing'],
        ),
        (
            {'stages': [(32, 3, 9), (48, 2, 11)]},
            ['lower its mini_batch_sizes, 2, which makes its global batch smaller', 'gt_sizes', 'bf16'],
        ),
    ],
)
def test_a_stage_that_does_not_fit_is_refused_with_advice(prepare, monkeypatch, train, advice):
    monkeypatch.setattr(preflight, 'free_memory', lambda _: 5_000_000)
    with pytest.raises(PreflightError) as caught:
        check_memory(*prepare(**train))
    said = str(caught.value)
    start = f'Stage 2, with 2 patches of {48 if "stages" in train else 32} pixels at a time, does not fit into memory'
    assert said.startswith(f'{start}: it takes')
    assert '5 MB are free' in said and '\n' not in said
    assert all(way in said for way in advice) and ('bf16' in said) is ('bf16' in advice)


@pytest.mark.parametrize(
    ('text', 'kind', 'said'),
    [
        (
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
            PreflightError,
            r'one step takes more than there is.* To make it fit: ',
        ),
        ('a bug', RuntimeError, '^a bug$'),
    ],
)
def test_a_failing_step_is_refused_with_advice_if_memory_is_why(prepare, monkeypatch, text, kind, said):
    model, *rest = prepare()

    def forward(_):
        raise RuntimeError(text)

    monkeypatch.setattr(preflight, '_estimate', lambda *_: 0)
    monkeypatch.setattr(model, 'forward', forward)
    with pytest.raises(kind, match=said):
        check_memory(model, *rest)
    assert all(parameter.grad is None for parameter in model.parameters)


class Indexed:
    """A set that takes integers."""

    def __getitem__(self, index):
        return {'lq': [1, 2][index]}


class Nameless:
    def __getitem__(self, key):
        return {'lq': torch.zeros(3, key.patch, key.patch), 'gt': torch.zeros(3, key.patch, key.patch)}


@pytest.mark.parametrize(('data', 'error'), [(Indexed(), 'TypeError'), (Nameless(), 'KeyError')])
def test_a_set_without_training_samples_is_refused(prepare, data, error):
    model, stages, batches, _ = prepare()
    name = type(data).__name__
    with pytest.raises(
        PreflightError, match=rf'datasets\.train: {name} gives no training sample \({error}: .*SampleKey'
    ):
        check_memory(model, stages, batches, data)


def test_a_run_that_does_not_fit_ends_before_its_first_iteration(runs, caplog):
    """A real one, with patches of 4,096 pixels."""
    if psutil.virtual_memory().available > 1e11:
        pytest.skip('it may fit on this machine')
    name, path = runs.option_file()
    content = yaml.safe_load(path.read_text())
    content['datasets']['train'].update(gt_size=4096, gt_sizes=[32, 4096])
    path.write_text(yaml.safe_dump(content))
    assert logged(caplog, path) == 1
    assert 'does not fit into memory: it takes about' in caplog.text and 'Traceback' not in caplog.text
    assert not (ROOT / 'experiments' / name).exists()  # the name is free for another try


def test_the_log_says_how_much_memory_a_step_takes(runs, caplog):
    _, path = runs.option_file(total_iter=2)
    assert logged(caplog, path) == 0
    assert 'Stage 1 takes the most memory, about' in caplog.text


def logged(caplog, path):
    """Status of a run whose log goes to caplog."""
    logger = get_logger()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO):
            return run('basicsr.train', ['-opt', str(path)])
    finally:
        logger.removeHandler(caplog.handler)
