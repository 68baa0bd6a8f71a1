"""scripts/benchmark.py: what it counts, and what it prints."""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from basicsr.archs.restormer_arch import Restormer
from basicsr.utils import cli
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.files import ROOT
from scripts import benchmark
from scripts.benchmarks import inference, measuring, peers, training

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


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pairs')
    training.make_pairs(folder)
    return folder


@pytest.fixture
def in_process(monkeypatch, capsys):
    """`in_process(arguments)`: the rows, measured in this process, but for the peers; the machine is not measured."""
    alone = measuring.run_alone

    def rows(*arguments):
        args = parsed(*arguments, '--json')

        def run(task):
            return alone(task) if 'model' in task else args.measure_row(args, task)

        monkeypatch.setattr(measuring, 'machine', lambda *_: MACHINE)
        monkeypatch.setattr(measuring, 'run_alone', run)
        monkeypatch.setattr(training, 'keep_all_memory', lambda: None)  # it would last for all tests
        args.compare(args)
        return json.loads(capsys.readouterr().out)['rows']

    return rows


# --- inference ----------------------------------------------------------------------------------------------


def test_operations_are_the_published_ones():
    """At 256×256: 140.99 GMAC in convolutions and 13.89 in attention; sizes are rounded up to multiples of 8."""
    flops = inference.arithmetic(measuring.load_network(parsed('inference')), 3, 250, 249)
    assert flops / 2e9 == pytest.approx(140.99 + 13.89, abs=0.01)


def test_figures_of_inference_follow_from_the_measured_ones(in_process, weights):
    modes = ['fp32', 'bf16+tlc', 'plain+bf16']
    rows = in_process('inference', '--sizes', '40x24', '--modes', *modes, '--weights', weights)
    plain, single, tlc, _ = rows
    assert [row['mode'] for row in rows] == ['plain', *modes]
    assert plain['of_plain_time'] == 1 and single['of_plain_time'] == single['seconds'] / plain['seconds']
    assert tlc['gflops'] == tlc['flops'] / tlc['seconds'] / 1e9
    assert [row['of_machine'] for row in rows] == [
        row['gflops'] / most for row, most in zip(rows, (100, 100, 200, 200), strict=True)
    ]
    for row in rows:
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and row['peak_MB'] > row['working_MB']


@pytest.mark.slow
def test_as_a_program(weights):
    options = [
        '--device',
        'cpu',
        '--sizes',
        '16x16',
        '--modes',
        'fp32',
        '--plain_repeats',
        '0',
        '--weights',
        weights,
    ]
    command = [sys.executable, ROOT / 'scripts' / 'benchmark.py', 'inference', *options]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    machine, heading, row = result.stdout.splitlines()
    assert 'matrix product' in machine and heading.split()[:2] == ['size', 'mode']
    assert row.split()[:2] == ['16x16', 'fp32'] and len(row) == len(heading)


def test_machine_has_a_rate_for_each_precision_in_use(monkeypatch):
    monkeypatch.setitem(measuring.MATRIX_SIDE, 'cpu', 32)
    rates = measuring.machine(torch.device('cpu'), ['plain', 'plain+bf16'])['gflops']
    assert list(rates) == ['fp32', 'bf16'] and min(rates.values()) > 0


def test_memory_includes_a_peak_in_the_past():
    memory = measuring.Memory(torch.device('cpu'))
    with mmap.mmap(-1, 50_000_000) as fresh:  # other allocations may reuse memory that the process has
        fresh.write(b'a' * len(fresh))
    first = memory.read()
    assert 49 <= first['working_MB'] < 140
    later = measuring.Memory(torch.device('cpu')).read()
    before_and_working = memory.before / 1e6 + first['working_MB'] - 1e-6  # rounding of the sum
    assert later['working_MB'] < 10 and later['peak_MB'] >= before_and_working


COMPILED = [pytest.param(mode, marks=pytest.mark.slow) for mode in ('plain+compile', 'plain+bf16+compile')]


@pytest.mark.parametrize('mode', ['plain', 'plain+bf16', *COMPILED])
def test_plain_modes_equal_the_network_and_compile_each_kind_of_block_once(monkeypatch, mode):
    counter = CompileCounter()
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=counter))
    torch.compiler.reset()
    network = Restormer(dim=8, num_blocks=[2, 1, 1, 2], num_refinement_blocks=2, heads=[1, 2, 2, 4])
    image = torch.rand(1, 3, 32, 24)
    expected, found = network(image), measuring.plain(network, mode)(image)
    # Four levels, and the decoder of the first one, which has twice the channels
    assert counter.frame_count == (5 if 'compile' in mode else 0)
    error = (found - expected).norm() / (expected - image).norm()
    assert (1e-4 < error < 0.05) if 'bf16' in mode else error < 1e-4


# --- other runtimes -----------------------------------------------------------------------------------------


def test_peers_are_rows_beside_ours_and_take_turns_with_them(in_process, weights):
    pytest.importorskip('onnxruntime')
    settings = ['--weights', weights, '--repeats', 2, '--rounds', 2]
    rows = in_process('inference', '--sizes', '40x24', '--modes', 'fp32', '--peers', 'onnxruntime', *settings)
    assert [(row['size'], row['mode']) for row in rows] == [
        ('40x24', mode) for mode in ('plain', 'fp32', 'onnxruntime')
    ]
    peer = rows[-1]
    assert 0 < peer['range'][0] <= peer['seconds'] <= peer['range'][1]
    assert peer['of_plain_time'] == peer['seconds'] / rows[0]['seconds']
    assert peer['peak_MB'] < 250  # importing PyTorch takes more
    # Peers allocate while they load, so their working memory is unknown.
    assert not peer.keys() & {'working_MB', 'of_plain_memory'}


@pytest.mark.parametrize('mode', [mode for modes in peers.MODES.values() for mode in modes])
def test_peers_compute_the_network(tmp_path, weights, mode):
    for package in ('onnx', mode.partition('+')[0]):
        pytest.importorskip(package)
    args = parsed('inference', '--peers', mode.partition('+')[0], '--weights', weights)
    task = next(task for task in inference.peer_tasks(args, tmp_path) if task['mode'] == mode)
    image = np.random.default_rng(0).random((1, 3, 21, 43), np.float32)
    try:
        found = peers.load(mode, task['model'], image.shape, 1)(image)
    except SystemExit as lacking:
        pytest.skip(str(lacking))
    with torch.inference_mode():
        expected = measuring.plain(measuring.load_network(args))(torch.nn.ReflectionPad2d((0, 5, 0, 3))(
            torch.from_numpy(image)))[..., :21, :43].numpy()  # fmt: skip
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected - image)
    assert (1e-4 < error < 0.05) if 'bf16' in mode else error < 1e-4


def test_peer_says_which_precision_the_processor_lacks(monkeypatch):
    core = SimpleNamespace(get_property=lambda *_: ['FP32', 'INT8'])
    monkeypatch.setitem(sys.modules, 'openvino', SimpleNamespace(Core=lambda: core))
    monkeypatch.setitem(sys.modules, 'openvino_telemetry', None)
    with pytest.raises(SystemExit, match='this processor does not compute in bf16'):
        peers.load('openvino+bf16', 'net.onnx', (1, 3, 8, 8), 1)


def test_missing_runtimes_are_named_with_how_to_install_them(monkeypatch, capsys):
    monkeypatch.setattr(inference, 'find_spec', lambda name: None if name == 'openvino' else name)
    run('inference', '--device', 'cpu', '--peers', 'onnxruntime', 'openvino', status=2)
    assert '--peers: found no openvino; pip install openvino' in capsys.readouterr().err


def test_other_processes_keep_cores_busy_and_end(monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        inference.subprocess, 'Popen', lambda *args: started.append(popen(*args)) or started[-1]
    )
    with pytest.raises(KeyboardInterrupt), inference.busy(2):
        assert [other.poll() for other in started] == [None, None]
        raise KeyboardInterrupt
    assert [other.poll() is None for other in started] == [False, False]


def test_rows_take_turns_and_have_the_medians_of_the_rounds():
    tasks = [{'size': size, 'mode': mode} for size in ('8x8', '16x8') for mode in ('plain', 'fp32', 'bf16')]
    seconds, asked = iter([4, 1, 6, 3, 5, 2, *[1] * 6]), []

    def measured(task):
        asked.append((task['size'], task['mode']))
        if task['mode'] == 'bf16':
            return {'failed': 'killed'}
        value = next(seconds)
        return {'seconds': value, 'range': [value - 1, value + 1]}

    rows = [(task['mode'], row) for task, row in measuring.in_rounds(tasks, measured, 3)]
    turns = [('8x8', mode) for mode in ('plain', 'fp32', 'bf16', 'plain', 'fp32', 'plain', 'fp32')]
    assert asked == [*turns, *[('16x8', mode) for _, mode in turns]]
    assert rows[:3] == [
        ('plain', {'seconds': 5, 'range': [3, 7]}),
        ('fp32', {'seconds': 2, 'range': [0, 4]}),
        ('bf16', {'failed': 'killed'}),
    ]


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_is_measured(in_process, weights):
    modes = ['bf16+checkpointing', 'plain+bf16']
    settings = ['--weights', weights, '--steps', 3, '--plain_steps', 2, '--workers', 1]
    rows = in_process('train', '--stages', '16x3', '--modes', *modes, *settings)
    assert [(row['stage'], row['mode']) for row in rows] == [('16x3', mode) for mode in ('plain', *modes)]
    for row in rows:
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and 0 < row['data_wait'] < 1
        assert row['samples_per_s'] == 3 / row['seconds'] and row['peak_MB'] > row['working_MB']


MEMORY = {'peak_MB': 900.0, 'working_MB': 600.0}
MEASURED = {
    ('plain', '16x4'): {'seconds': 4.0, 'range': [3, 5], 'samples_per_s': 1.0, 'data_wait': 0.05, **MEMORY},
    ('fp32', '16x4'): {'seconds': 1.5, 'range': [1, 2], 'samples_per_s': 4 / 1.5, 'data_wait': 0.1}
    | {'peak_MB': 500.0, 'working_MB': 200.0},
    ('plain', '24x2'): {'failed': 'does not fit into memory'},
    ('fp32', '24x2'): {'seconds': 2.0, 'range': [2, 2], 'samples_per_s': 1.0, 'data_wait': 0, **MEMORY},
}


@pytest.fixture
def measured(monkeypatch):
    """Arguments whose rows are MEASURED, and nothing is measured."""
    monkeypatch.setattr(measuring, 'run_alone', lambda task: dict(MEASURED[task['mode'], task['stage']]))
    monkeypatch.setattr(measuring, 'machine', lambda *_: MACHINE)
    monkeypatch.setattr(training, 'make_pairs', lambda folder: None)
    return ['train', '--device', 'cpu', '--stages', '16x4', '24x2', '--modes', 'fp32']


def test_figures_of_training_follow_from_the_measured_ones(measured, capsys):
    run(*measured, '--json')
    answer = json.loads(capsys.readouterr().out)
    assert answer['machine'] == MACHINE
    plain, single, too_large, alone = answer['rows']
    assert plain == {'stage': '16x4', 'mode': 'plain', **MEASURED['plain', '16x4']} | {
        'of_plain_time': 1.0, 'of_plain_speed': 1.0, 'of_plain_memory': 1.0
    }  # fmt: skip
    assert single['of_plain_time'] == 1.5 / 4 and single['of_plain_speed'] == pytest.approx(4 / 1.5)
    assert single['of_plain_memory'] == 200 / 600
    assert too_large == {'stage': '24x2', 'mode': 'plain', 'failed': 'does not fit into memory'}
    assert 'of_plain_speed' not in alone  # the first stage's plain is no baseline


def test_table_of_training_has_a_line_for_each_row(measured, capsys):
    run(*measured)
    title, heading, plain, single, too_large, alone = capsys.readouterr().out.splitlines()
    assert title.endswith('matrix product: 100 GFLOP/s in fp32, 200 GFLOP/s in bf16')
    assert heading.split()[:2] == ['stage', 'mode'] and 'waits for data' in heading and 'launch' not in heading
    assert len(plain) == len(single) == len(alone) == len(heading)
    assert ' '.join(single.split()) == '16x4 fp32 1.500 1.000-2.000 2.67 2.7x 10.0% 200 1/3.0 500'
    assert too_large.split(maxsplit=2) == ['24x2', 'plain', 'does not fit into memory']
    assert alone.split().count('-') == 2


def test_table_of_a_gpu_has_launches_and_its_title_says_where_tf32_is_used(measured, monkeypatch, capsys):
    """Its rows are measured by this process."""
    tf32 = {'convolutions': True, 'matrix products': False}
    monkeypatch.setattr(measuring, 'run_alone', None)
    monkeypatch.setattr(training, 'measure', lambda args, task: dict(MEASURED[task['mode'], task['stage']]))
    monkeypatch.setattr(measuring, 'resolve_device', lambda name: torch.device('cuda'))
    monkeypatch.setattr(torch.cuda, 'set_device', lambda index: None)
    monkeypatch.setattr(measuring, 'machine', lambda *_: {**MACHINE, 'tf32': tf32})
    monkeypatch.setitem(MEASURED, ('fp32', '16x4'), {'seconds': 0.0123456, 'range': [0.01, 0.02], **MEMORY}
                        | {'launch_seconds': 0.001, 'samples_per_s': 324.0})  # fmt: skip
    run(*measured)
    title, heading, _, single, *_ = capsys.readouterr().out.splitlines()
    assert title.endswith('; fp32: TF32 in convolutions, no TF32 in matrix products')
    assert 'launch s' in heading and 'waits for data' not in heading and len(single) == len(heading)
    assert single.split()[2:7] == ['0.01235', '0.01000-0.02000', '324.00', '324.0x', '0.001000']


def test_paper_stands_for_the_stages_of_its_recipe():
    args = parsed('train', '--stages', 'paper', '64x2')
    assert training.asked_stages(args) == ['128x8', '160x5', '192x4', '256x2', '320x1', '384x1', '64x2']


@pytest.mark.parametrize(('name', 'count'), [('small', 1_114_883), ('full', 26_126_644), (None, 208_213)])
def test_plain_and_ours_train_the_same_network(pairs, weights, name, count):
    args = parsed('train', *(['--network', name] if name else ['--weights', weights]))
    task = {'mode': 'bf16+compile', 'folder': pairs}
    plain, ours = measuring.load_network(args), training.our_model(args, task, torch.device('cpu'))
    assert sum(parameter.numel() for parameter in plain.parameters()) == count
    assert [p.shape for p in plain.parameters()] == [p.shape for p in ours.net.parameters()]
    train = ours.options.train
    assert (train.precision, train.compile, train.activation_checkpointing) == ('bf16', True, False)
    if not name:
        assert all(map(torch.equal, plain.parameters(), ours.net.parameters()))


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


def test_steps_on_a_gpu_use_ready_bytes_and_events_and_do_not_wait(monkeypatch):
    clock, seen = Clock(monkeypatch), []

    class Model:
        def step(self, batches, iteration, _):
            clock.launch()
            seen.append((iteration, {kind: (image.shape, image.dtype) for kind, image in batches[0].items()}))

        def release(self):
            seen.append('release')

        def raise_if_bad(self):
            seen.append('checked')

    for name in ('synchronize', 'reset_peak_memory_stats'):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: seen.append(name))
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: tensor)
    monkeypatch.setattr(measuring, 'device_of', lambda args: torch.device('cuda'))
    monkeypatch.setattr(training, 'PlainModel', lambda *_: Model())
    monkeypatch.setattr(training, 'Memory', lambda device: argparse.Namespace(read=lambda: MEMORY))
    row = training.measure(parsed('train'), {'mode': 'plain', 'stage': '16x3', 'folder': ''})
    assert row['seconds'] == pytest.approx(0.005) and row['range'] == pytest.approx([0.005, 0.005])
    assert row['launch_seconds'] == pytest.approx(0.002) and row['samples_per_s'] == pytest.approx(600)
    assert MEMORY.items() <= row.items()
    image = (torch.Size([3, 3, 16, 16]), torch.uint8)
    steps = [(iteration, {'lq': image, 'gt': image}) for iteration in range(1, 17)]
    # The peak begins after the first steps, and includes recording.
    assert seen == [*steps[:3], 'release', 'synchronize', 'reset_peak_memory_stats', *steps[3:], 'checked']


def test_default_number_of_repeats():
    cpu, cuda = map(torch.device, ('cpu', 'cuda'))
    asked = ((None, cpu, 3), (None, cuda, 3), (4, cuda, 3))
    assert [measuring.repeats(*each) for each in asked] == [3, 10, 4]


# --- rows that fail -----------------------------------------------------------------------------------------


def test_dead_process_costs_one_row(monkeypatch, tmp_path):
    script = tmp_path / 'rows.py'
    script.write_text(
        """if True:
            import json, os, signal, sys
            task = json.loads(sys.argv[-1])
            if task == 'killed':
                os.kill(os.getpid(), signal.SIGKILL)
            if task == 'broken':
                sys.exit('first\\nit is broken')
            if task == 'silent':
                os._exit(3)
            print(json.dumps(sys.argv[1:]))
        """
    )
    monkeypatch.setattr(measuring, 'SCRIPT', script)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'train', '--network', 'full'])
    assert measuring.run_alone('good') == ['train', '--network', 'full', '--measure', '"good"']
    assert 'killed' in measuring.run_alone('killed')['failed']
    assert measuring.run_alone('broken') == {'failed': 'it is broken'}
    assert measuring.run_alone('silent') == {'failed': 'ended with status 3'}


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (KeyError('bad'), "KeyError: 'bad'"),
        (torch.OutOfMemoryError('CUDA out of memory.'), 'does not fit into memory'),
    ],
)
def test_child_prints_its_row_even_if_it_fails(monkeypatch, capsys, error, said):
    def measure(args, task):
        if task == 'bad':
            raise error
        return {task: args.device}

    monkeypatch.setattr(inference, 'measure', measure)
    for task, row in (('good', {'good': 'cpu'}), ('bad', {'failed': said})):
        run('inference', '--device', 'cpu', '--measure', json.dumps(task))
        assert json.loads(capsys.readouterr().out) == row


def test_json_is_printed_even_after_ctrl_c(measured, monkeypatch, capsys):
    def rows(task):
        if task['mode'] != 'plain':
            raise KeyboardInterrupt
        return dict(MEASURED['plain', '16x4'])

    monkeypatch.setattr(measuring, 'run_alone', rows)
    run(*measured, '--json', status=130)
    assert [row['mode'] for row in json.loads(capsys.readouterr().out)['rows']] == ['plain']


@pytest.mark.parametrize(
    ('command', 'arguments', 'said'),
    [
        ('inference', ['--sizes', '16'], 'found 16; allowed: WIDTHxHEIGHT'),
        ('inference', ['--sizes', '0x16'], 'found 0x16; allowed: WIDTHxHEIGHT'),
        ('inference', ['--modes', 'fp8'], "'fp8'"),
        ('inference', ['--repeats', '0'], '--repeats'),
        ('inference', ['--peers', 'tensorrt'], "'tensorrt'"),
        ('inference', ['--modes', 'fp16', '--plain_repeats', '0'], 'fp16 on a CPU'),
        ('inference', ['--weights', 'none.pth'], 'none.pth'),
        ('train', ['--modes', 'plain'], "'plain'"),
        ('train', ['--stages', '128'], 'found 128; allowed: PATCHxBATCH'),
        ('train', ['--modes', 'bf16+tlc'], "'bf16+tlc'"),
        ('train', ['--modes', 'fp16'], 'fp16 on a CPU'),
        ('train', ['--stages', '20x2'], 'found 20x2; allowed: PATCHxBATCH'),
        ('train', ['--weights', 'none.pth'], 'none.pth'),
        ('data', ['--patches', '0'], '--patches'),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, command, arguments, said):
    run(command, *([] if command == 'data' else ['--device', 'cpu']), *arguments, status=2)
    assert said in capsys.readouterr().err


# --- data ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_from_a_pack_are_cheaper_than_from_png(capsys):
    run('data', '--patches', 16, 24, '--samples', 9, '--json')
    rows = json.loads(capsys.readouterr().out)['rows']
    assert [row['patch'] for row in rows] == [16, 24]
    assert all(0 < row['packed_ms'] < min(row['png_ms'], row['synthetic_ms']) for row in rows)


def test_both_sides_train_on_the_same_pairs(pairs):
    png, packed = training.pairs(pairs), training.Dataset_PackedImage(str(pairs / 'pairs.pack'))
    assert len(png) == len(packed) == training.PAIRS
    for kind in ('lq', 'gt'):
        assert png[3][kind].shape == (3, 512, 512) and png[3][kind].equal(packed[3][kind])
    assert not png[3]['lq'].equal(png[3]['gt']) and not png[3]['gt'].equal(png[4]['gt'])
