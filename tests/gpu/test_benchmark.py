"""scripts/benchmark.py on a GPU: two small runs."""

import json
import subprocess
import sys

import pytest
import torch

from basicsr.utils.files import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def run(*arguments):
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
    return answer


def test_training():
    modes = ['fp32', 'bf16', 'plain+bf16', 'plain+bf16+compile']
    answer = run('train', '--stages', '128x4', '32x2', '--modes', *modes, '--steps', '4')
    rows = {(row['mode'], row['stage']): row for row in answer['rows']}
    assert list(rows) == [(mode, stage) for stage in ('128x4', '32x2') for mode in ('plain', *modes)]
    assert answer['machine']['tf32'] == {'convolutions': True, 'matrix products': False}
    # The second stage begins with an empty memory.
    for mode in ('plain', *modes):
        assert rows[mode, '32x2']['working_MB'] < rows[mode, '128x4']['working_MB']
    assert rows['fp32', '128x4']['working_MB'] < rows['plain', '128x4']['working_MB']
    assert rows['plain+bf16', '128x4']['working_MB'] < rows['plain', '128x4']['working_MB']


def test_inference():
    modes = ['fp32', 'bf16', 'plain+bf16']
    answer = run('inference', '--sizes', '64x64', '96x64', '--modes', *modes, '--repeats', '4')
    assert [(row['mode'], row['size']) for row in answer['rows']] == [
        (mode, size) for size in ('64x64', '96x64') for mode in ('plain', *modes)
    ]
    assert answer['machine']['tf32'] == {'convolutions': False, 'matrix products': False}
