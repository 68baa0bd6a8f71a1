"""scripts/benchmark.py: what it counts, and what it prints."""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.archs.restormer_arch import Restormer
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.files import ROOT
from scripts import benchmark
from scripts.benchmarks import PLAIN_MODES, inference, measuring, networks, pairs, training

WEIGHTS = ROOT / 'Motion_Deblurring' / 'pretrained_models' / 'motion_deblurring_compact.pth'

pytestmark = pytest.mark.skipif(
    not Path('/proc/self/clear_refs').exists(), reason='memory is measured by way of /proc'
)


def run(command, *arguments, status=0):
    device = [] if command == 'data' else ['--device', 'cpu']
    parts = [sys.executable, ROOT / 'scripts' / 'benchmark.py', command, *device, *arguments]
    result = subprocess.run(list(map(str, parts)), capture_output=True, text=True)
    assert result.returncode == status, result.stderr
    return result


def test_the_arithmetic_is_the_published():
    """At 256×256 140.99 GMAC in convolutions and 13.89 in attention; a size is rounded up to multiples of 8."""
    network, options = networks.load_network(None)
    flops = inference.arithmetic(network, options, torch.device('cpu'), 250, 249)
    assert flops / 2e9 == pytest.approx(140.99 + 13.89, abs=0.01)


def test_every_figure_follows_from_the_measured_ones():
    modes = ['fp32', 'fp32+tlc', 'bf16', 'plain+bf16']
    result = run('inference', '--sizes', '40x24', '--modes', *modes, '--weights', WEIGHTS, '--json')
    answer = json.loads(result.stdout)
    plain, single, tlc, half, plain_half = rows = answer['rows']
    assert [row['mode'] for row in rows] == ['plain', *modes]
    assert plain['of_plain_time'] == plain['of_plain_memory'] == 1
    assert single['of_plain_time'] == single['seconds'] / plain['seconds']
    assert single['of_plain_memory'] == single['working_MB'] / plain['working_MB']
    assert tlc['of_time_without_tlc'] == tlc['seconds'] / single['seconds']
    assert half['gflops'] == half['flops'] / half['seconds'] / 1e9
    for row in (half, plain_half):
        assert row['of_machine'] == row['gflops'] / answer['machine']['gflops']['bf16']
    for row in rows:
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and row['peak_MB'] > row['working_MB'] > 0


def test_the_table_has_a_line_for_each_row():
    result = run(
        'inference', '--sizes', '16x16', '--modes', 'fp32', '--plain_repeats', '0', '--weights', WEIGHTS
    )
    machine, heading, row = result.stdout.splitlines()
    assert 'matrix product' in machine and heading.split()[:2] == ['size', 'mode']
    assert row.split()[:2] == ['16x16', 'fp32'] and len(row) == len(heading)


@pytest.mark.parametrize(
    ('command', 'arguments', 'status', 'said'),
    [
        ('inference', ['--sizes', '16'], 2, 'size'),
        ('inference', ['--sizes', '0x16'], 2, 'size'),
        ('inference', ['--modes', 'fp8'], 2, "'fp8'"),
        ('inference', ['--repeats', '0'], 2, 'repeats'),
        ('inference', ['--modes', 'fp16', '--plain_repeats', '0'], 1, 'fp16 on a CPU'),
        ('inference', ['--weights', 'none.pth'], 1, 'none.pth'),
        ('train', ['--modes', 'plain'], 2, 'found plain; allowed: fp32, bf16, fp16'),
        ('train', ['--modes', 'plain+fp16'], 2, 'plain+bf16, plain+compile, plain+bf16+compile'),
        ('train', ['--stages', '128'], 2, 'found 128; allowed: PATCHxBATCH'),
        ('train', ['--modes', 'bf16+tlc'], 2, 'found bf16+tlc; allowed: fp32, bf16, fp16'),
        ('train', ['--modes', 'fp16'], 1, 'fp16 on a CPU'),
        ('train', ['--stages', '20x2'], 1, 'found a patch of 20 pixels; allowed: multiples of 8 up to 512'),
        ('train', ['--weights', 'none.pth'], 1, 'none.pth'),
        ('data', ['--patches', '513'], 1, 'found a patch of 513 pixels; allowed: at most 512'),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(command, arguments, status, said):
    result = run(command, *arguments, status=status)
    assert said in result.stderr and 'Traceback' not in result.stderr


def test_memory_sees_a_peak_that_is_over():
    memory = measuring.Memory(torch.device('cpu'))
    with mmap.mmap(
        -1, 50_000_000
    ) as fresh:  # what is allocated otherwise may lie in memory that is there already
        fresh.write(b'a' * len(fresh))
    assert 49 <= memory.read()['working_MB'] < 140


def test_plain_modes_are_the_plain_network_and_each_kind_of_block_is_compiled_once(monkeypatch):
    options = networks.all_options(None) | {
        'dim': 8,
        'num_blocks': [2, 1, 1, 2],
        'num_refinement_blocks': 2,
        'heads': [1, 2, 2, 4],
    }
    network = Restormer(**options)
    image = torch.rand(1, 3, 32, 24)
    counter = CompileCounter()
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=counter))
    expected = networks.plain(network, options)(image)
    torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)
    for mode in PLAIN_MODES:
        torch.compiler.reset()
        counter.clear()
        found = networks.plain(network, options, mode)(image)
        assert counter.frame_count == (
            5 if 'compile' in mode else 0
        )  # four levels, and the first one's decoder
        error = (found - expected).norm() / (expected - image).norm()
        assert (1e-4 < error < 0.05) if 'bf16' in mode else error < 1e-5


# --- on a GPU, with another clock ---------------------------------------------------------------------------


class Time:
    """A processor that takes 2 ms to launch what takes a GPU 5 ms, after 1 ms of something else."""

    def __init__(self):
        self.processor, self.gpu, self.recorded = 0.0, 0.001, []

    def work(self, *_):
        self.processor += 0.002
        self.gpu = max(self.gpu, self.processor) + 0.005

    def clock(self):
        return self.processor

    def event(self, enable_timing=True):
        return Event(self)


class Event:
    def __init__(self, time):
        self.time = time

    def record(self):
        self.at = self.time.gpu
        self.time.recorded.append(self)

    def synchronize(self):
        self.time.processor = max(self.time.processor, self.at)

    def elapsed_time(self, end):
        assert self.time.processor >= end.at, 'asked before the GPU is there'
        return (end.at - self.at) * 1e3


def test_steps_on_a_gpu_are_timed_by_its_events_and_not_waited_for():
    time = Time()
    row = measuring.timed_by_events(time.work, 4, time.event, time.clock)
    assert row == {'times': pytest.approx([0.006, 0.005, 0.005, 0.005]), 'launches': pytest.approx([0.002] * 4)}
    assert len(time.recorded) == 5


def test_a_gpu_trains_on_ready_bytes_after_a_warm_up(monkeypatch, tmp_path):
    time, seen = Time(), []

    def step(batch, iteration):
        seen.append((iteration, {kind: (image.shape, image.dtype) for kind, image in batch.items()}))

    for name in ('synchronize', 'reset_peak_memory_stats'):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: seen.append(name))
    monkeypatch.setattr(torch.cuda, 'Event', time.event)
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: tensor)
    run = training.Run('plain', 16, 3, tmp_path, torch.device('cuda'), 0, 3, 10)
    row = training.steps_on_gpu(step, run, argparse.Namespace(device=run.device))
    assert len(row['times']) == len(row['launches']) == 10
    assert seen[3:5] == ['synchronize', 'reset_peak_memory_stats']
    image = (torch.Size([3, 3, 16, 16]), torch.uint8)
    steps = seen[:3] + seen[5:]
    assert steps == [(iteration, {'lq': image, 'gt': image}) for iteration in range(1, 14)]


def test_on_a_gpu_one_process_does_all_rows(monkeypatch, capsys):
    groups = []

    def answer(_, tasks):
        groups.append([(task.get('mode'), task.get('patch')) for task in tasks])
        for task in tasks:
            seconds = 0.5 if task.get('mode') == 'plain' else 0.1
            row = {
                'times': [seconds] * 3,
                'launches': [0.01, 0.02, 0.04],
                'peak_MB': 2500.0,
                'working_MB': 2000.0,
            }
            machine = {**MACHINE, 'device': 'H', 'tf32': {'convolutions': True, 'matrix products': False}}
            yield machine if task['what'] == 'machine' else row

    monkeypatch.setattr(measuring, 'resolve_device', lambda name: torch.device('cuda'))
    monkeypatch.setattr(measuring, 'run_alone', answer)
    monkeypatch.setattr(training, 'make_pairs', lambda folder: None)
    modes = ['bf16', 'plain+bf16+compile']
    assert benchmark.main(['train', '--device', 'cuda', '--stages', '24x2', '16x4', '--modes', *modes]) == 0
    rows = [(mode, patch) for patch in (24, 16) for mode in ('plain', *modes)]
    assert groups == [[(None, None), *rows]]
    title, heading, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith('; fp32: TF32 in convolutions, no TF32 in matrix products')
    assert 'device ms' in heading and all(len(row) == len(heading) for row in rows)
    assert rows[0].split() == [
        '24x2',
        'plain',
        '500.00',
        '500.00-500.00',
        '20.00',
        '4.00',
        '1.0x',
        '2.50',
        '1/1.0',
    ]
    assert rows[4].split() == [
        '16x4',
        'bf16',
        '100.00',
        '100.00-100.00',
        '20.00',
        '40.00',
        '5.0x',
        '2.50',
        '1/1.0',
    ]


def test_by_default_more_is_timed_on_a_gpu():
    cpu, cuda = map(torch.device, ('cpu', 'cuda'))
    assert [measuring.repeats(*asked) for asked in ((None, cpu, 3), (None, cuda, 3), (4, cuda, 3))] == [
        3,
        10,
        4,
    ]


# --- rows that fail -----------------------------------------------------------------------------------------


def test_a_process_that_dies_costs_one_row_and_each_row_comes_at_once(monkeypatch, tmp_path):
    script = tmp_path / 'rows.py'
    script.write_text(
        """if True:
            import json, os, signal, sys, time
            for task in json.loads(sys.argv[-1]):
                if task == 'killed':
                    os.kill(os.getpid(), signal.SIGKILL)
                if task == 'broken':
                    sys.exit('first\\nit is broken')
                if task == 'silent':
                    os._exit(3)
                print(json.dumps({'process': os.getpid(), 'time': time.time()}), flush=True)
                time.sleep(0.2)
        """
    )
    monkeypatch.setattr(measuring, 'SCRIPT', script)
    args = argparse.Namespace(command_line=['train'])
    tasks = ['a', 'b', 'killed', 'broken', 'c', 'silent']
    rows = []
    for row in measuring.run_alone(args, tasks):
        rows.append(row)
        assert time.time() - row.get('time', time.time()) < 0.15
    assert rows[0]['process'] == rows[1]['process'] != rows[4]['process']
    assert 'killed' in rows[2]['failed']
    assert [rows[3], rows[5]] == [{'failed': 'it is broken'}, {'failed': 'ended with status 3'}]


def test_an_error_is_a_row_in_one_sentence():
    def broken(args, task):
        raise {'memory': torch.OutOfMemoryError('CUDA out of memory.'), 'other': KeyError('one\n  two')}[task]

    assert measuring.attempt(broken, None, 'memory') == {'failed': measuring.TOO_LARGE}
    assert measuring.attempt(broken, None, 'other') == {'failed': "KeyError: 'one\\n two'"}
    assert measuring.attempt(lambda args, task: {task: args}, 1, 'a') == {'a': 1}


def test_a_machine_that_cannot_be_measured_ends_it(monkeypatch, capsys):
    monkeypatch.setattr(measuring, 'run_alone', lambda args, tasks: iter([{'failed': 'no kernel image'}]))
    with pytest.raises(SystemExit):
        benchmark.main(['inference', '--device', 'cpu'])
    assert 'error: no kernel image' in capsys.readouterr().err


def test_rows_are_printed_as_json_however_the_run_ends(monkeypatch, capsys):
    def answer(args, tasks):
        if tasks[0]['what'] != 'machine' and tasks[0]['mode'] != 'plain':
            raise KeyboardInterrupt
        yield MACHINE if tasks[0]['what'] == 'machine' else {**MEASURED['plain', 16], 'flops': 1.0}

    monkeypatch.setattr(measuring, 'run_alone', answer)
    assert benchmark.main(['inference', '--device', 'cpu', '--json']) == 130
    assert [row['mode'] for row in json.loads(capsys.readouterr().out)['rows']] == ['plain']


# --- training -----------------------------------------------------------------------------------------------


def test_training_is_measured(tmp_path):
    options = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}
    weights = tmp_path / 'tiny.pth'
    save_checkpoint(weights, Restormer(**options).state_dict(), {'type': 'Restormer', **options}, 0)
    settings = ['--weights', weights, '--steps', 3, '--plain_steps', 2, '--workers', 1, '--json']
    result = run('train', '--stages', '16x3', '--modes', 'bf16+checkpointing', 'plain+bf16', *settings)
    answer = json.loads(result.stdout)
    assert answer['machine']['gflops']['fp32'] > 0
    assert [(row['stage'], row['mode']) for row in answer['rows']] == [
        ('16x3', 'plain'),
        ('16x3', 'bf16+checkpointing'),
        ('16x3', 'plain+bf16'),
    ]
    for row in answer['rows']:
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and 0 < row['data_wait'] < 1
        assert row['peak_MB'] > row['working_MB'] > 0


MACHINE = {'device': 'cpu', 'threads': 1, 'torch': '2', 'gflops': {'fp32': 100.0}}
MEASURED = {
    ('plain', 16): {'times': [3.0, 4.0, 5.0], 'waits': [0.1, 0.1, 0.4], 'peak_MB': 900.0, 'working_MB': 600.0},
    ('fp32', 16): {'times': [1.0, 2.0], 'waits': [0.0, 0.3], 'peak_MB': 500.0, 'working_MB': 200.0},
    ('plain', 24): {'failed': measuring.TOO_LARGE},
    ('fp32', 24): {'times': [2.0], 'waits': [0.0], 'peak_MB': 500.0, 'working_MB': 200.0},
}


@pytest.fixture
def measured(monkeypatch):
    """What the processes of the rows would answer."""

    def answer(_, tasks):
        return (MACHINE if 'mode' not in task else MEASURED[task['mode'], task['patch']] for task in tasks)

    monkeypatch.setattr(measuring, 'run_alone', answer)
    monkeypatch.setattr(training, 'make_pairs', lambda folder: None)
    return ['train', '--device', 'cpu', '--stages', '16x4', '24x2', '--modes', 'fp32']


def test_every_figure_of_training_follows_from_the_measured_ones(measured, capsys):
    assert benchmark.main([*measured, '--json']) == 0
    answer = json.loads(capsys.readouterr().out)
    plain, single, too_large, alone = answer['rows']
    assert answer['machine'] == MACHINE
    assert plain == {
        'stage': '16x4',
        'mode': 'plain',
        'seconds': 4.0,
        'range': [3.0, 5.0],
        'samples_per_s': 1.0,
        'data_wait': pytest.approx(0.05),
        'peak_MB': 900.0,
        'working_MB': 600.0,
        'of_plain_speed': 1.0,
        'of_plain_memory': 1.0,
    }
    assert single['samples_per_s'] == 4 / 1.5 == single['of_plain_speed']
    assert single['of_plain_memory'] == 200 / 600 and single['data_wait'] == pytest.approx(0.1)
    assert too_large == {'stage': '24x2', 'mode': 'plain', 'failed': measuring.TOO_LARGE}
    assert alone['samples_per_s'] == 1 and 'of_plain_speed' not in alone


def test_the_table_of_training_has_a_line_for_each_row(measured, capsys):
    assert benchmark.main(measured) == 0
    title, heading, plain, single, too_large, alone = capsys.readouterr().out.splitlines()
    assert 'matrix product' in title and heading.split()[:2] == ['stage', 'mode']
    assert len(plain) == len(single) == len(alone) == len(heading)
    assert single.split() == [
        '16x4',
        'fp32',
        '1.500',
        '1.000-2.000',
        '2.67',
        '2.7x',
        '10.0%',
        '200',
        '1/3.0',
        '500',
    ]
    assert too_large.split(maxsplit=2) == ['24x2', 'plain', 'does not fit into memory']
    assert alone.split().count('-') == 2


def parsed(monkeypatch, *arguments):
    """The arguments of `train` as its functions get them."""
    seen = []
    monkeypatch.setattr(training, 'compare', seen.append)
    assert benchmark.main(['train', *arguments]) == 0
    return seen[0]


def test_the_stages_of_the_paper_are_those_of_its_recipe(monkeypatch):
    args = parsed(monkeypatch, '--stages', 'paper', '64x2')
    assert training.asked_stages(args) == [(128, 8), (160, 5), (192, 4), (256, 2), (320, 1), (384, 1), (64, 2)]


@pytest.mark.parametrize(('name', 'parameters'), [('small', 1_114_883), ('full', 26_126_644)])
def test_networks_by_name(monkeypatch, name, parameters):
    network, _ = training.plain_network(parsed(monkeypatch, '--network', name))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_weights_say_which_network_they_are_for(monkeypatch, tmp_path):
    options = {'dim': 4, 'num_blocks': [0, 1, 1, 1], 'num_refinement_blocks': 0, 'heads': [1, 1, 1, 1]}
    path = tmp_path / 'weights.pth'
    save_checkpoint(path, Restormer(**options).state_dict(), {'type': 'Restormer', **options}, 1)
    assert options.items() <= training.asked_options(parsed(monkeypatch, '--weights', str(path))).items()


def test_plain_and_ours_are_the_same_network_at_first(monkeypatch, tmp_path):
    args = parsed(monkeypatch)
    run = training.Run('bf16+compile', 128, 20, tmp_path, torch.device('cpu'), 1, 2, 3)
    options = training.our_options(args, run)
    assert options['train']['compile'] and not options['train']['activation_checkpointing']
    assert options['datasets']['train']['dataset_enlarge_ratio'] == 2  # 16 pairs, a batch of 20
    plain, _ = training.plain_network(args)
    ours = Restormer(**{name: value for name, value in options['network_g'].items() if name != 'type'})
    assert {name: p.shape for name, p in plain.named_parameters()} == {
        name: p.shape for name, p in ours.named_parameters()
    }


# --- data ---------------------------------------------------------------------------------------------------


def test_a_sample_from_a_pack_is_cheaper_than_from_png():
    result = run('data', '--patches', 16, 24, '--samples', 9, '--json')
    answer = json.loads(result.stdout)
    assert [row['patch'] for row in answer['rows']] == [16, 24]
    for row in answer['rows']:
        assert row['of_packed_cost'] == row['png_ms'] / row['packed_ms'] > 1
        assert min(row[f'{kind}_wall_ms'] for kind in ('packed', 'png', 'synthetic')) > 0
        assert row['synthetic_ms'] > row['packed_ms']


def test_the_files_are_as_large_as_those_of_photographs_and_the_plain_samples_are_pairs(tmp_path):
    pairs.make_pairs(tmp_path)
    raw = 3 * pairs.SIDE**2
    for kind in ('input', 'target'):
        files = sorted((tmp_path / kind).iterdir())
        assert len(files) == pairs.COUNT and all(0.5 < file.stat().st_size / raw < 0.7 for file in files)
    dataset = pairs.PlainPairs(tmp_path, 64)
    for _ in range(4):
        lq, gt = (dataset[3][kind] for kind in ('lq', 'gt'))
        assert lq.shape == gt.shape == (3, 64, 64) and lq.dtype == torch.float32 and lq.is_contiguous()
        assert lq.min() >= 0 and gt.max() <= 1
