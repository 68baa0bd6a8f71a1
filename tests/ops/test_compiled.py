"""The Triton kernels, compiled for a GPU that this machine need not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from basicsr.utils.files import ROOT

pytest.importorskip('triton', '3.2')

# Variables that each kernel's loop carries. Triton takes a variable for constant if it starts as the same object as
# another one that is assigned to it; the interpreter does not show that.
CARRIED = {
    '_layer_norm_backward': 2,  # gradients of weight and bias
    '_depthwise': 2,  # two unfinished rows
    '_gated_depthwise': 4,  # the same of gates and values
    '_depthwise_backward': 13,  # two unfinished rows, nine weights' gradients, two rows of x
}
COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from basicsr.ops import kernels

CONSTANTS = {'eps': 1e-5, 'BN': 4, 'BC': 64, 'ROWS': 16, 'BW': 4, 'BK': 32, 'BIAS': True, 'HALO': True}
loops = {}
for name in sys.argv[1:]:
    kernel = getattr(kernels, name)
    constants = {key: value for key, value in {**CONSTANTS, 'BACKWARD': True}.items() if key in kernel.arg_names}
    types = {key: '*fp32' if key.endswith('_ptr') else 'i32' for key in kernel.arg_names}
    source = ASTSource(kernel, {**types, **dict.fromkeys(constants, 'constexpr')}, constants)
    text = triton.compile(source, target=GPUTarget('cuda', 90, 32)).asm['ttir']
    lines = [line for line in text.splitlines() if 'scf.for' in line]
    loops[name] = [line.partition('iter_args(')[2].partition(') ->')[0].count('=') for line in lines]
print(json.dumps(loops))
"""


@pytest.mark.slow
def test_loops_carry_every_variable_that_changes():
    environment = {key: value for key, value in os.environ.items() if key != 'TRITON_INTERPRET'}
    done = subprocess.run(
        [sys.executable, '-c', COMPILE, *CARRIED], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: [carried] for name, carried in CARRIED.items()}
