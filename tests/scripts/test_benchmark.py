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

from basicsr.archs.restormer_arch import Restormer
from basicsr.utils import cli
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.files import ROOT
from scripts import benchmark
from scripts.benchmarks import inference, measuring, training

TINY = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}
MACHINE = {'device': 'cpu', 'threads': 1, 'torch': '2', 'gflops': {'fp32': 100.0, 'bf16': 200.0}}

pytestmark = pytest.mark.skipif(
    not Path('/proc/self/clear_refs').exists(), reason='memory is measured through /proc'
)


def run(*arguments, status=0):
    assert cli.run('scripts.benchmark', list(map(str, arguments))) == status


def parsed(command, *arguments):
    return benchmark.parser().parse_args([command, '--device', 'cpu', *map(str, arguments)])


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / 'tiny.pth'
    save_checkpoint(path, Restormer(**TINY).state_dict(), {'type': 'Restormer', **TINY}, 0)
    return path


@pytest.fixture
def in_process(monkeypatch):
    """`in_process(arguments)`: rows are measured in this process, and the machine is not."""

    def prepare(*arguments):
        args = benchmark.parser().parse_args(list(map(str, arguments)))

        def rows(tasks):
            for task in tasks:
                yield MACHINE if task is measuring.MACHINE else args.measure_row(args, task)

        monkeypatch.setattr(measuring, 'run_alone', rows)
        monkeypatch.setattr(training, 'keep_all_memory', lambda: None)  # it would last for all tests
        args.compare(args)

    return prepare


# --- inference ----------------------------------------------------------------------------------------------


def test_operations_are_the_published_ones():
    """At 256×256: 140.99 GMAC in convolutions and 13.89 in attention; sizes are rounded up to multiples of 8."""
    network, options = measuring.load_network(parsed('inference'))
    flops = inference.arithmetic(network, options, torch.device('cpu'), 250, 249)
    assert flops / 2e9 == pytest.approx(140.99 + 13.89, abs=0.01)


def test_figures_of_inference_follow_from_the_measured_ones(in_process, weights, capsys):
    modes = ['fp32', 'fp32+tlc', 'bf16', 'plain+bf16']
    in_process(
        'inference', '--device', 'cpu', '--sizes', '40x24', '--modes', *modes, '--weights', weights, '--json'
    )
    answer = json.loads(capsys.readouterr().out)
    plain, single, tlc, half, plain_half = rows = answer['rows']
    assert [row['mode'] for row in rows] == ['plain', *modes]
    assert plain['of_plain_time'] == plain['of_plain_memory'] == 1
    assert single['of_plain_time'] == single['seconds'] / plain['seconds']
    assert single['of_plain_memory'] == single['working_MB'] / plain['working_MB']
    assert tlc['of_time_without_tlc'] == tlc['seconds'] / single['seconds']
    assert half['gflops'] == half['flops'] / half['seconds'] / 1e9
    for row in (half, plain_half):
        assert row['of_machine'] == row['gflops'] / 200
    for row in rows:
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and row['peak_MB'] > row['working_MB']


@pytest.mark.slow
def test_as_a_program(weights):
    command = [
        sys.executable,
        ROOT / 'scripts' / 'benchmark.py',
        'inference',
        '--device',
        'cpu',
        '--sizes',
        '16x16',
    ]
    command += ['--modes', 'fp32', '--plain_repeats', '0', '--weights', weights]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    machine, heading, row = result.stdout.splitlines()
    assert 'matrix product' in machine and heading.split()[:2] == ['size', 'mode']
    assert row.split()[:2] == ['16x16', 'fp32'] and len(row) == len(heading)


def test_machine_has_a_rate_for_each_precision(monkeypatch):
    monkeypatch.setattr(measuring, 'SMALL_SIDE', 32)
    monkeypatch.setattr(measuring, 'LONGEST_PRODUCT', 0)
    rates = measuring.machine(torch.device('cpu'))['gflops']
    assert list(rates) == ['fp32', 'bf16'] and min(rates.values()) > 0


@pytest.mark.alone
def test_memory_includes_a_peak_in_the_past():
    memory = measuring.Memory(torch.device('cpu'))
    with mmap.mmap(-1, 50_000_000) as fresh:  # other allocations may reuse memory that the process has
        fresh.write(b'a' * len(fresh))
    assert 49 <= memory.read()['working_MB'] < 140


COMPILED = [pytest.param(mode, marks=pytest.mark.slow) for mode in ('plain+compile', 'plain+bf16+compile')]


@pytest.mark.parametrize('mode', ['plain', 'plain+bf16', *COMPILED])
def test_plain_modes_equal_the_network_and_compile_each_kind_of_block_once(monkeypatch, mode):
    counter = CompileCounter()
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=counter))
    torch.compiler.reset()
    options = measuring.asked_options(parsed('inference')) | {
        'dim': 8, 'num_blocks': [2, 1, 1, 2], 'num_refinement_blocks': 2, 'heads': [1, 2, 2, 4],
    }  # fmt: skip
    network = Restormer(**options)
    image = torch.rand(1, 3, 32, 24)
    expected, found = network(image), measuring.plain(network, mode)(image)
    # Four levels, and the decoder of the first one, which has twice the channels
    assert counter.frame_count == (5 if 'compile' in mode else 0)
    error = (found - expected).norm() / (expected - image).norm()
    assert (1e-4 < error < 0.05) if 'bf16' in mode else error < 1e-4


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_is_measured(in_process, weights, capsys, monkeypatch):
    monkeypatch.setattr(training, 'PAIRS', 3)
    modes = ['bf16+checkpointing', 'plain+bf16']
    settings = ['--weights', weights, '--steps', 3, '--plain_steps', 2, '--workers', 1, '--json']
    in_process('train', '--device', 'cpu', '--stages', '16x3', '--modes', *modes, *settings)
    rows = json.loads(capsys.readouterr().out)['rows']
    assert [(row['stage'], row['mode']) for row in rows] == [('16x3', mode) for mode in ('plain', *modes)]
    for row in rows:
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and 0 < row['data_wait'] < 1
        assert row['peak_MB'] > row['working_MB']


MEASURED = {
    ('plain', 16): {'times': [3.0, 4.0, 5.0], 'waits': [0.1, 0.1, 0.4], 'peak_MB': 900.0, 'working_MB': 600.0},
    ('fp32', 16): {'times': [1.0, 2.0], 'waits': [0.0, 0.3], 'peak_MB': 500.0, 'working_MB': 200.0},
    ('plain', 24): {'failed': measuring.TOO_LARGE},
    ('fp32', 24): {'times': [2.0], 'waits': [0.0], 'peak_MB': 500.0, 'working_MB': 200.0},
}


@pytest.fixture
def measured(monkeypatch):
    """Arguments whose rows are MEASURED."""

    def rows(tasks):
        return (MACHINE if 'mode' not in task else MEASURED[task['mode'], task['patch']] for task in tasks)

    monkeypatch.setattr(measuring, 'run_alone', rows)
    monkeypatch.setattr(training, 'make_pairs', lambda folder: None)
    return ['train', '--device', 'cpu', '--stages', '16x4', '24x2', '--modes', 'fp32']


def test_figures_of_training_follow_from_the_measured_ones(measured, capsys):
    run(*measured, '--json')
    answer = json.loads(capsys.readouterr().out)
    plain, single, too_large, alone = answer['rows']
    assert answer['machine'] == MACHINE
    assert plain == {
        **{'stage': '16x4', 'mode': 'plain', 'seconds': 4.0, 'range': [3.0, 5.0], 'samples_per_s': 1.0},
        **{'data_wait': pytest.approx(0.05), 'peak_MB': 900.0, 'working_MB': 600.0},
        **{'of_plain_speed': 1.0, 'of_plain_memory': 1.0},
    }
    assert single['samples_per_s'] == 4 / 1.5 == single['of_plain_speed']
    assert single['of_plain_memory'] == 200 / 600 and single['data_wait'] == pytest.approx(0.1)
    assert too_large == {'stage': '24x2', 'mode': 'plain', 'failed': measuring.TOO_LARGE}
    assert alone['samples_per_s'] == 1 and 'of_plain_speed' not in alone


def test_table_of_training_has_a_line_for_each_row(measured, capsys):
    run(*measured)
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


def test_paper_stands_for_the_stages_of_its_recipe():
    args = parsed('train', '--stages', 'paper', '64x2')
    assert training.asked_stages(args) == [(128, 8), (160, 5), (192, 4), (256, 2), (320, 1), (384, 1), (64, 2)]


def test_networks_by_name_and_by_weights(weights):
    for arguments, parameters in ((['small'], 1_114_883), (['full'], 26_126_644)):
        network, _ = measuring.load_network(parsed('train', '--network', *arguments))
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert TINY.items() <= measuring.asked_options(parsed('train', '--weights', weights)).items()


def test_plain_and_ours_train_the_same_network(tmp_path):
    args = parsed('train')
    row = training.Run('bf16+compile', 128, 20, tmp_path, torch.device('cpu'), 1, 2, 3)
    options = training.our_options(args, row)
    assert options['train']['compile'] and not options['train']['activation_checkpointing']
    assert options['datasets']['train']['dataset_enlarge_ratio'] == 2  # 16 pairs, a batch of 20
    plain, _ = measuring.load_network(args)
    ours = Restormer(**{name: value for name, value in options['network_g'].items() if name != 'type'})
    assert {name: p.shape for name, p in plain.named_parameters()} == {
        name: p.shape for name, p in ours.named_parameters()
    }


# --- a GPU, with a simulated clock --------------------------------------------------------------------------


class Clock:
    """A CPU that takes 2 ms to launch 5 ms of GPU work, after 1 ms of other work."""

    def __init__(self, monkeypatch):
        self.cpu, self.gpu = 0.0, 0.001
        monkeypatch.setattr(torch.cuda, 'Event', lambda enable_timing: Event(self))
        monkeypatch.setattr(measuring.time, 'perf_counter', lambda: self.cpu)

    def launch(self):
        self.cpu += 0.002
        self.gpu = max(self.gpu, self.cpu) + 0.005


class Event:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.at = self.clock.gpu

    def synchronize(self):
        self.clock.cpu = max(self.clock.cpu, self.at)

    def elapsed_time(self, end):
        assert self.clock.cpu >= end.at, 'asked before the GPU has reached it'
        return (end.at - self.at) * 1e3


def test_steps_on_a_gpu_use_ready_bytes_and_events_and_do_not_wait(monkeypatch, tmp_path):
    clock, seen = Clock(monkeypatch), []

    def step(batch, iteration):
        clock.launch()
        seen.append((iteration, {kind: (image.shape, image.dtype) for kind, image in batch.items()}))

    for name in ('synchronize', 'reset_peak_memory_stats'):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: seen.append(name))
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: tensor)
    row = training.Run('plain', 16, 3, tmp_path, torch.device('cuda'), 0, 3, 10)
    times = training.steps_on_gpu(step, row, argparse.Namespace(device=row.device))
    assert times == {'times': pytest.approx([0.005] * 10), 'launches': pytest.approx([0.002] * 10)}
    assert seen[3:5] == ['synchronize', 'reset_peak_memory_stats']
    image = (torch.Size([3, 3, 16, 16]), torch.uint8)
    assert seen[:3] + seen[5:] == [(iteration, {'lq': image, 'gt': image}) for iteration in range(1, 14)]


def test_one_process_measures_all_rows_of_a_gpu(monkeypatch, capsys):
    groups = []

    def rows(tasks):
        groups.append([(task.get('mode'), task.get('patch')) for task in tasks])
        for task in tasks:
            seconds = 0.5 if task.get('mode') == 'plain' else 0.1
            memory = {'peak_MB': 2500.0, 'working_MB': 2000.0}
            row = {'times': [seconds] * 3, 'launches': [0.01, 0.02, 0.04], **memory}
            machine = {**MACHINE, 'device': 'H', 'tf32': {'convolutions': True, 'matrix products': False}}
            yield machine if task['what'] == 'machine' else row

    monkeypatch.setattr(measuring, 'resolve_device', lambda name: torch.device('cuda'))
    monkeypatch.setattr(measuring, 'resolve_precision', lambda name, device: None)
    monkeypatch.setattr(measuring, 'run_alone', rows)
    monkeypatch.setattr(training, 'make_pairs', lambda folder: None)
    modes = ['bf16', 'plain+bf16+compile']
    run('train', '--device', 'cuda', '--stages', '24x2', '16x4', '--modes', *modes)
    assert groups == [[(None, None), *((mode, patch) for patch in (24, 16) for mode in ('plain', *modes))]]
    title, heading, *lines = capsys.readouterr().out.splitlines()
    assert title.endswith('; fp32: TF32 in convolutions, no TF32 in matrix products')
    assert 'device ms' in heading and all(len(line) == len(heading) for line in lines)
    assert lines[0].split() == [
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
    assert lines[4].split() == [
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


def test_default_number_of_repeats():
    cpu, cuda = map(torch.device, ('cpu', 'cuda'))
    asked = ((None, cpu, 3), (None, cuda, 3), (4, cuda, 3))
    assert [measuring.repeats(*each) for each in asked] == [3, 10, 4]


# --- rows that fail -----------------------------------------------------------------------------------------


@pytest.mark.alone
def test_dead_process_costs_one_row_and_each_row_comes_at_once(monkeypatch, tmp_path):
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
                print(json.dumps({'process': os.getpid(), 'argv': sys.argv[1:-1], 'time': time.time()}), flush=True)
                time.sleep(0.2)
        """
    )
    monkeypatch.setattr(measuring, 'SCRIPT', script)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'train', '--network', 'full'])
    rows = []
    for row in measuring.run_alone(['a', 'b', 'killed', 'broken', 'c', 'silent']):
        rows.append(row)
        assert time.time() - row.get('time', time.time()) < 0.15
    assert rows[0]['process'] == rows[1]['process'] != rows[4]['process']
    assert rows[0]['argv'] == ['train', '--network', 'full', '--measure']
    assert 'killed' in rows[2]['failed']
    assert [rows[3], rows[5]] == [{'failed': 'it is broken'}, {'failed': 'ended with status 3'}]


def test_child_prints_a_row_for_each_task_even_if_one_fails(monkeypatch, capsys):
    def measure(args, task):
        return {task: args.device} if task == 'good' else {}[task]

    monkeypatch.setattr(inference, 'measure', measure)
    run('inference', '--device', 'cpu', '--measure', json.dumps(['bad', 'good']))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{'failed': "KeyError: 'bad'"}, {'good': 'cpu'}]

    def too_large(args, task):
        raise torch.OutOfMemoryError('CUDA out of memory.')

    assert measuring.attempt(too_large, None, 'a') == {'failed': measuring.TOO_LARGE}


def test_machine_that_cannot_be_measured_ends_the_program(monkeypatch, capsys):
    monkeypatch.setattr(measuring, 'run_alone', lambda tasks: iter([{'failed': 'no kernel image'}]))
    run('inference', '--device', 'cpu', status=1)
    assert capsys.readouterr().err.endswith(': no kernel image\n')


def test_json_is_printed_even_after_ctrl_c(monkeypatch, capsys):
    def rows(tasks):
        if tasks[0]['what'] != 'machine' and tasks[0]['mode'] != 'plain':
            raise KeyboardInterrupt
        yield MACHINE if tasks[0]['what'] == 'machine' else {**MEASURED['plain', 16], 'flops': 1.0}

    monkeypatch.setattr(measuring, 'run_alone', rows)
    run('inference', '--device', 'cpu', '--json', status=130)
    assert [row['mode'] for row in json.loads(capsys.readouterr().out)['rows']] == ['plain']


@pytest.mark.parametrize(
    ('command', 'arguments', 'said'),
    [
        ('inference', ['--sizes', '16'], '--sizes'),
        ('inference', ['--sizes', '0x16'], '--sizes'),
        ('inference', ['--modes', 'fp8'], "'fp8'"),
        ('inference', ['--repeats', '0'], '--repeats'),
        ('inference', ['--modes', 'fp16', '--plain_repeats', '0'], 'fp16 on a CPU'),
        ('inference', ['--weights', 'none.pth'], 'none.pth'),
        ('train', ['--modes', 'plain'], 'found plain; allowed: fp32, bf16, fp16'),
        ('train', ['--modes', 'plain+fp16'], 'plain+bf16, plain+compile, plain+bf16+compile'),
        ('train', ['--stages', '128'], 'found 128; allowed: PATCHxBATCH'),
        ('train', ['--modes', 'bf16+tlc'], 'found bf16+tlc; allowed: fp32, bf16, fp16'),
        ('train', ['--modes', 'fp16'], 'fp16 on a CPU'),
        ('train', ['--stages', '20x2'], 'found a patch of 20 pixels; allowed: multiples of 8 up to 512'),
        ('train', ['--weights', 'none.pth'], 'none.pth'),
        ('data', ['--patches', '513'], 'found a patch of 513 pixels; allowed: at most 512'),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, command, arguments, said):
    run(command, *([] if command == 'data' else ['--device', 'cpu']), *arguments, status=2)
    assert said in capsys.readouterr().err


# --- data ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.alone
def test_samples_from_a_pack_are_cheaper_than_from_png(capsys):
    run('data', '--patches', 16, 24, '--samples', 9, '--json')
    rows = json.loads(capsys.readouterr().out)['rows']
    assert [row['patch'] for row in rows] == [16, 24]
    for row in rows:
        assert row['of_packed_cost'] == row['png_ms'] / row['packed_ms'] > 1
        assert min(row[f'{kind}_wall_ms'] for kind in ('packed', 'png', 'synthetic')) > 0
        assert row['synthetic_ms'] > row['packed_ms']


def test_made_up_files_have_the_size_of_photographs_and_plain_samples_are_pairs(tmp_path):
    training.make_pairs(tmp_path)
    raw = 3 * training.SIDE**2
    for kind in ('input', 'target'):
        files = sorted((tmp_path / kind).iterdir())
        assert len(files) == training.PAIRS and all(0.5 < file.stat().st_size / raw < 0.7 for file in files)
    dataset = training.PlainPairs(tmp_path, 64)
    for _ in range(4):
        lq, gt = (dataset[3][kind] for kind in ('lq', 'gt'))
        assert lq.shape == gt.shape == (3, 64, 64) and lq.dtype == torch.float32 and lq.is_contiguous()
        assert lq.min() >= 0 and gt.max() <= 1
