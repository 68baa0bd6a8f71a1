"""scripts/benchmark.py: what it counts, and what it prints."""

from __future__ import annotations

import importlib.util
import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / 'Motion_Deblurring' / 'pretrained_models' / 'motion_deblurring_compact.pth'

spec = importlib.util.spec_from_file_location('benchmark', ROOT / 'scripts' / 'benchmark.py')
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

pytestmark = pytest.mark.skipif(
    not Path('/proc/self/clear_refs').exists(), reason='memory is measured by way of /proc'
)


def run(*arguments, status=0):
    command = [sys.executable, str(ROOT / 'scripts' / 'benchmark.py'), 'inference', '--device', 'cpu']
    result = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == status, result.stderr
    return result


def test_the_arithmetic_is_the_published():
    """At 256×256 140.99 GMAC in convolutions and 13.89 in attention; a size is rounded up to multiples of 8."""
    network, options = benchmark.load_network(None)
    flops = benchmark.arithmetic(network, options, torch.device('cpu'), 250, 249)
    assert flops / 2e9 == pytest.approx(140.99 + 13.89, abs=0.01)


def test_every_figure_follows_from_the_measured_ones():
    result = run('--sizes', '40x24', '--modes', 'fp32', 'fp32+tlc', 'bf16', '--weights', WEIGHTS, '--json')
    answer = json.loads(result.stdout)
    plain, single, tlc, half = rows = answer['rows']
    assert [row['mode'] for row in rows] == ['plain', 'fp32', 'fp32+tlc', 'bf16']
    assert plain['of_plain_time'] == plain['of_plain_memory'] == 1
    assert single['of_plain_time'] == single['seconds'] / plain['seconds']
    assert single['of_plain_memory'] == single['working_MB'] / plain['working_MB']
    assert tlc['of_time_without_tlc'] == tlc['seconds'] / single['seconds']
    assert half['gflops'] == half['flops'] / half['seconds'] / 1e9
    assert half['of_machine'] == half['gflops'] / answer['machine']['gflops']['bf16']
    for row in rows:
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and row['peak_MB'] > row['working_MB'] > 0


def test_the_table_has_a_line_for_each_row():
    result = run('--sizes', '16x16', '--modes', 'fp32', '--plain_repeats', '0', '--weights', WEIGHTS)
    machine, heading, row = result.stdout.splitlines()
    assert 'matrix product' in machine and heading.split()[:2] == ['size', 'mode']
    assert row.split()[:2] == ['16x16', 'fp32'] and len(row) == len(heading)


@pytest.mark.parametrize(
    ('arguments', 'status', 'said'),
    [
        (['--sizes', '16'], 2, 'size'),
        (['--sizes', '0x16'], 2, 'size'),
        (['--modes', 'fp8'], 2, "'fp8'"),
        (['--repeats', '0'], 2, 'repeats'),
        (['--modes', 'fp16', '--plain_repeats', '0'], 1, 'fp16 on a CPU'),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(arguments, status, said):
    result = run(*arguments, status=status)
    assert said in result.stderr and 'Traceback' not in result.stderr


def test_memory_sees_a_peak_that_is_over():
    memory = benchmark.Memory(torch.device('cpu'))
    with mmap.mmap(
        -1, 50_000_000
    ) as fresh:  # what is allocated otherwise may lie in memory that is there already
        fresh.write(b'a' * len(fresh))
    assert 49 <= memory.read()['working_MB'] < 140
