"""The kernels in C, against PyTorch in double precision."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference.strip_engine import StripEngine
from basicsr.ops import DepthwiseRows, LayerNormRows, cpu_kernels
from basicsr.utils.files import ROOT
from basicsr.utils.memory import Workspace

CPU = torch.device('cpu')
# Relative to the largest term of a sum; bf16: half a unit in the last of its 8 binary digits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}

compiled = pytest.mark.skipif(
    not cpu_kernels.run_on(CPU, torch.float32, 32), reason='this system has no C compiler'
)
types = pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
biased = pytest.mark.parametrize('bias', [True, False])


def depthwise_by_definition(x_nWK, weight, bias):
    x_BKnW = x_nWK.double().permute(2, 0, 1)[None]
    y_BKnW = F.conv2d(x_BKnW, weight.double(), bias, padding=(0, 1), groups=len(weight))
    return y_BKnW[0].permute(1, 2, 0)


def assert_near(found, expected, dtype):
    assert found.dtype == dtype and found.shape == expected.shape
    error = (found.double() - expected).abs()
    assert (error <= TOLERANCE[dtype] * expected.abs() + TOLERANCE[torch.float32] * expected.abs().max()).all()


@compiled
@types
@biased
@pytest.mark.parametrize('channels', [32, 33, 47, 48, 64, 96, 101])
def test_depthwise(dtype, bias, channels):
    workspace = Workspace(CPU)
    for rows, width in ((1, 1), (2, 2), (3, 17)):
        x = torch.randn(rows + 2, width, channels).to(dtype)
        weight, bias_K = torch.randn(channels, 1, 3, 3), torch.randn(channels) if bias else None
        expected = depthwise_by_definition(x, weight, None if bias_K is None else bias_K.double())
        for sums in (False, True):
            found = DepthwiseRows(weight, bias_K, dtype, sums=sums)(x, workspace)
            assert_near(found, expected, torch.float32 if sums else dtype)


@compiled
@types
@biased
@pytest.mark.parametrize('channels', [32, 33, 48, 100])
def test_gated_depthwise(dtype, bias, channels):
    workspace = Workspace(CPU)
    for rows, width in ((1, 1), (2, 2), (3, 17)):
        x = torch.randn(rows + 2, width, 2 * channels).to(dtype)
        weight, bias_K = torch.randn(2 * channels, 1, 3, 3), torch.randn(2 * channels) if bias else None
        hidden = depthwise_by_definition(x, weight, None if bias_K is None else bias_K.double())
        gate, value = hidden.chunk(2, -1)
        found = DepthwiseRows(weight, bias_K, dtype, gated=True)(x, workspace)
        assert_near(found, F.gelu(gate) * value, dtype)


@compiled
def test_gelu_on_all_magnitudes():
    """As exact as PyTorch's in single precision, which is wrong by 1.2e-6."""
    gate = torch.cat(
        [
            torch.linspace(-9, 9, 32 * 8001),
            torch.logspace(-30, 30, 32 * 100),
            -torch.logspace(-30, 30, 32 * 100),
        ]
    )
    pixels = torch.stack([gate.view(-1, 32), torch.ones(len(gate) // 32, 32)], 1).view(1, -1, 64)
    weight = torch.zeros(64, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    found = DepthwiseRows(weight, None, torch.float32, gated=True)(
        pixels.expand(3, -1, -1).contiguous(), Workspace(CPU)
    )
    found, small = found.flatten(), gate.abs() <= 9
    assert (found.double() - F.gelu(gate.double()))[small].abs().max() <= 1.3e-6
    assert torch.equal(found[~small], gate[~small].clamp(min=0))


@compiled
@types
@pytest.mark.parametrize('channels', [32, 33, 48, 96, 101, 384])
def test_layer_norm(dtype, channels):
    for pixels in (1, 4, 7):
        x = (torch.randn(pixels, channels) * 3 + 5).to(dtype)
        weight, bias = torch.randn(2, channels)
        exact = x.double()
        mean, variance = exact.mean(-1, keepdim=True), exact.var(-1, unbiased=False, keepdim=True)
        scaled = (variance + 1e-5).rsqrt() * weight
        for b, expected in ((bias, (exact - mean) * scaled + bias), (None, exact * scaled)):
            assert_near(LayerNormRows(weight, b, dtype)(x, Workspace(CPU)), expected, dtype)


@compiled
def test_squares_are_added():
    x, square_K = torch.randn(5, 7, 40), torch.randn(40)
    expected = square_K.double() + x.double().square().sum((0, 1))
    cpu_kernels.add_squares(square_K, x)
    torch.testing.assert_close(square_K.double(), expected, rtol=1e-6, atol=1e-6)


@compiled
@types
def test_what_is_not_finite_stays_so(dtype):
    """Broken weights must not give an image. All bits of a NaN may be ones, which rounding would make zero."""
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    x, workspace = torch.randn(3, 4, 64).to(dtype), Workspace(CPU)
    weight, bias = torch.randn(64, 1, 3, 3), torch.randn(64)
    for broken in (nan, torch.inf, -torch.inf):
        worse = bias.clone()
        worse[40] = broken
        rows = DepthwiseRows(weight, worse, dtype), DepthwiseRows(weight, worse, dtype, sums=True)
        for depthwise in (*rows, LayerNormRows(bias, worse, dtype)):
            found = depthwise(x, workspace)
            assert not found[..., 40].isfinite().any() and found[..., :40].isfinite().all()
        gated = DepthwiseRows(weight, worse, dtype, gated=True)(x, workspace)
        assert not gated[..., 8].isfinite().any() and gated[..., :8].isfinite().all()


@compiled
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize('options', [{'bias': True}, {'LayerNorm_type': 'BiasFree'}], ids=str)
def test_engine_with_and_without_them(monkeypatch, options, dtype):
    torch.manual_seed(0)
    net = Restormer(dim=32, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, **options).eval()
    x = torch.rand(1, 3, 24, 40)
    found = StripEngine(net, dtype, window=16, strip_bytes=50_000)(x)
    monkeypatch.setattr(cpu_kernels, '_library', lambda: None)
    exact = StripEngine(net.double(), window=16)(x.double())
    without = StripEngine(net.float(), dtype, window=16, strip_bytes=50_000)(x)
    errors = [(y - exact).pow(2).mean().sqrt() for y in (found, without)]
    assert not torch.equal(found, without)
    assert errors[0] <= 1.1 * errors[1]


ASK = """
import sys, torch
from basicsr.ops import cpu_kernels
from basicsr.utils.logger import log_to_console
log_to_console()
print(cpu_kernels.run_on(torch.device('cpu'), torch.float32, 64))
"""


def ask(**environment):
    """Whether the kernels run in a new process, and what it says."""
    command = [sys.executable, '-c', ASK]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    *said, answer = done.stdout.splitlines()
    return answer == 'True', said


@compiled
def test_compiled_once_and_kept(tmp_path):
    path, calls = tmp_path / 'bin', tmp_path / 'calls'
    path.mkdir()
    compiler = shutil.which('cc') or shutil.which('gcc')
    (path / 'cc').write_text(f'#!/bin/sh\necho called >> {calls}\nPATH=/usr/bin:/bin exec {compiler} "$@"\n')
    (path / 'cc').chmod(0o755)
    for more in ({}, {'CC': 'cc -g0'}, {}):
        assert ask(PATH=str(path), XDG_CACHE_HOME=str(tmp_path / 'cache'), **more) == (True, [])
    assert calls.read_text() == 'called\n' * 2
    assert [file.suffix for file in (tmp_path / 'cache' / 'restormer').iterdir()] == ['.so'] * 2


def test_without_a_compiler_pytorch_computes(tmp_path):
    """Or with one that does not exist, for those who want none."""
    for environment in ({'PATH': str(tmp_path)}, {**os.environ, 'CC': 'none'}):
        assert ask(**{**environment, 'XDG_CACHE_HOME': str(tmp_path)}) == (False, [])


@compiled
@pytest.mark.parametrize('fault', ['compiler', 'cache', 'library'])
def test_a_broken_system_gets_a_sentence(tmp_path, fault):
    path, cache = tmp_path / 'bin', tmp_path / 'cache'
    path.mkdir()
    (path / 'cc').write_text(
        '#!/bin/sh\n'
        + {'compiler': 'echo no space >&2; exit 1', 'library': 'for o; do :; done; echo > $o'}.get(fault, '')
    )
    (path / 'cc').chmod(0o755)
    if fault == 'cache':
        cache.write_text('a file')
    works, said = ask(PATH=str(path), XDG_CACHE_HOME=str(cache))
    assert not works and len(said) == 1
    assert 'WARNING: The C kernels do not compile or run (' in said[0]
    assert {'compiler': 'no space', 'cache': 'cache', 'library': '.so'}[fault] in said[0]
