"""scripts/benchmark.py on a GPU: two small runs."""

import json
import subprocess
import sys

import pytest
import torch

from basicsr.utils.files import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def run(*arguments):
    """The machine, and the rows by mode."""
    parts = [sys.executable, str(ROOT / 'scripts' / 'benchmark.py'), *arguments, '--device', 'cuda', '--json']
    result = subprocess.run(parts, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer['machine']['device'] == torch.cuda.get_device_name(0)
    for row in answer['rows']:
        assert 'failed' not in row, row
        low, high = row['range']
        assert 0 < low <= row['seconds'] <= high and row['launch_seconds'] > 0
        assert row['peak_MB'] > row['working_MB'] > 0
    return answer['machine'], {row['mode']: row for row in answer['rows']}


def test_training():
    modes = ['fp32', 'plain+bf16', 'plain+bf16+compile']
    machine, rows = run('train', '--stages', '128x4', '--modes', *modes, '--steps', '4')
    assert list(rows) == ['plain', *modes]
    assert machine['tf32'] == {'convolutions': True, 'matrix products': False}
    assert rows['fp32']['working_MB'] < rows['plain']['working_MB']
    assert rows['plain+bf16']['working_MB'] < rows['plain']['working_MB']


def test_inference():
    modes = ['bf16', 'plain+bf16']
    machine, rows = run('inference', '--sizes', '96x64', '--modes', *modes, '--repeats', '4')
    assert list(rows) == ['plain', *modes]
    assert machine['tf32'] == {'convolutions': False, 'matrix products': False}
