"""scripts/export_onnx.py: the model against PyTorch; failed exports are one sentence and keep older files."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference.restorer import Restorer, restore_tensor
from basicsr.tasks import default_weights
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.cli import run
from basicsr.utils.files import ROOT

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

from onnx.reference import ReferenceEvaluator  # noqa: E402

from scripts import export_onnx  # noqa: E402

SMALL = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 2, 2, 4]}
OTHERS = [
    {'LayerNorm_type': 'BiasFree'},
    {'bias': True},
    {'inp_channels': 6, 'dual_pixel_task': True},
    {'inp_channels': 1, 'out_channels': 1},
]
HALF_A_LEVEL = 0.5 / 255
KINDS = [{}, *(pytest.param(options, marks=pytest.mark.slow) for options in OTHERS)]


def export(*arguments):
    return run('scripts.export_onnx', list(map(str, arguments)))


def network(**options):
    torch.manual_seed(0)
    net = Restormer(**SMALL, **options).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'norm' in name or name.endswith(('temperature', 'bias')):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def save(path, net, tlc=False, **options):
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **SMALL, **options}, 7, tlc=tlc)


def session(model):
    return onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / 'in' / 'net.pth'
    path.parent.mkdir()
    save(path, network())
    return path


@pytest.fixture
def old(tmp_path):
    """An older file in a folder of its own. After the test it is still there, and nothing else is."""
    path = tmp_path / 'out' / 'net.onnx'
    path.parent.mkdir()
    path.write_bytes(b'an older model')
    yield path
    assert path.read_bytes() == b'an older model'
    assert list(path.parent.iterdir()) == [path]


# --- the model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module', params=KINDS, ids=str)
def exported(request, tmp_path_factory):
    """A network, the exported file, and the same loaded."""
    folder = tmp_path_factory.mktemp('onnx')
    net = network(**request.param)
    save(folder / 'net.pth', net, **request.param)
    assert export('--weights', folder / 'net.pth', '--output', folder / 'net.onnx') == 0
    return net, folder / 'net.onnx', session(folder / 'net.onnx')


def check(model, net, size, expected, atol=1e-4):
    image = torch.rand(size[0], net.patch_embed.proj.in_channels, *size[1:])
    with torch.inference_mode():
        expected = expected(image).numpy()
    (restored,) = model.run(None, {'image': image.numpy()})
    assert (restored.shape, restored.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(restored, expected, rtol=0, atol=atol, err_msg=str(size))


def test_model_equals_the_network_at_any_batch_and_size(exported):
    net, _, model = exported
    for size in [(1, 40, 56), (3, 72, 16), (2, 8, 200), (1, 8, 8)]:
        check(model, net, size, net)


def test_model_pads_like_the_demo(exported):
    """A side of 9 reflects seven of its eight pixels; a side of 4 has too few to reflect, and repeats the last."""
    net, _, model = exported
    for size in [(41, 43), (39, 104), (48, 100), (9, 15), (5, 61), (4, 12), (3, 5), (17, 1), (1, 1)]:
        check(model, net, (1, *size), lambda image: restore_tensor(net, image))


@pytest.mark.parametrize(
    ('flags', 'window'),
    [
        ([], 24),
        (['--tlc', '16'], 16),
        (['--no-tlc'], None),
        pytest.param(['--tlc'], 384, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tlc_is_as_in_the_restorer_at_any_batch_and_size(tmp_path, capsys, flags, window):
    """By default that of the weights. Images are smaller than a window, of its size, and of several windows."""
    net, path = network(), tmp_path / 'net.onnx'
    save(tmp_path / 'net.pth', net, tlc=24)
    assert export('--weights', tmp_path / 'net.pth', '--output', path, *flags) == 0
    said = f'TLC in windows of {window} pixels' if window else 'without TLC'
    assert said in capsys.readouterr().out.splitlines()
    assert said in {entry.value for entry in onnx.load(path).metadata_props}
    restorer, model = Restorer(net, 'cpu', 'fp32', tlc=window or False), session(path)
    sizes = [(1, 13, 9), (2, 24, 24), (3, 24, 104), (1, 41, 83), (2, 61, 25), (1, 1, 200), (1, 9, 451)]
    for size in sizes:
        check(model, net, size, restorer.restore)
    if window in (16, 24):  # which says that these sizes need the windows
        image = torch.rand(1, 3, 41, 83)
        assert (restorer.restore(image) - restore_tensor(net, image)).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('options', OTHERS, ids=str)
def test_tlc_and_fp16_for_other_networks(tmp_path, options):
    net = network(**options)
    save(tmp_path / 'net.pth', net, **options)
    given = ['--weights', tmp_path / 'net.pth', '--output', tmp_path / 'net.onnx', '--tlc', 24]
    restorer = Restorer(net, 'cpu', 'fp32', tlc=24)
    for flags, atol in ([], 1e-4), (['--fp16'], HALF_A_LEVEL):
        assert export(*given, *flags) == 0
        for size in [(2, 13, 9), (1, 41, 83)]:
            check(session(tmp_path / 'net.onnx'), net, size, restorer.restore, atol)


# --- half precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('tlc', [24, pytest.param(False, marks=pytest.mark.slow)], ids=str)
def test_fp16_changes_values_by_less_than_half_a_level(tmp_path, tlc):
    net = network()
    save(tmp_path / 'net.pth', net, tlc=tlc)
    assert export('--weights', tmp_path / 'net.pth', '--output', tmp_path / 'net.onnx', '--fp16') == 0
    restorer, model = Restorer(net, 'cpu', 'fp32', tlc=tlc), session(tmp_path / 'net.onnx')
    for size in [(1, 40, 56), (2, 41, 43), (1, 3, 5), (1, 264, 251)]:
        check(model, net, size, restorer.restore, HALF_A_LEVEL)


def test_fp16_sums_beyond_its_range(tmp_path):
    """Sums of squares up to 1e6 and 1e9, where fp16 ends at 65504. ONNX Runtime may compute in single precision what
    the model says in half; the reference evaluator of onnx computes in the types of the model."""
    net = network()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith('attn.qkv.weight'):
                parameter[: 2 * parameter.shape[1]] *= 100  # queries and keys, which are normalised
    save(tmp_path / 'net.pth', net)
    assert export('--weights', tmp_path / 'net.pth', '--output', tmp_path / 'net.onnx', '--fp16') == 0
    for model, size in (
        (ReferenceEvaluator(str(tmp_path / 'net.onnx')), (1, 16, 24)),
        (session(tmp_path / 'net.onnx'), (1, 256, 1024)),
    ):
        check(model, net, size, net, HALF_A_LEVEL)


@pytest.mark.slow
def test_fp16_file_has_about_half_the_size(tmp_path):
    options = {**SMALL, 'dim': 32}
    save_checkpoint(tmp_path / 'net.pth', Restormer(**options).state_dict(), options, 7)
    for name, flags in ('32.onnx', []), ('16.onnx', ['--fp16']):
        assert export('--weights', tmp_path / 'net.pth', '--output', tmp_path / name, *flags) == 0
    sizes = [(tmp_path / name).stat().st_size for name in ('16.onnx', '32.onnx')]
    assert 0.5 < sizes[0] / sizes[1] < 0.55


def test_param_key_chooses_the_weights(tmp_path, capsys):
    params = network().state_dict()
    save_checkpoint(tmp_path / 'a.pth', params, {'type': 'Restormer', **SMALL}, 7, params)
    for key in ('params_ema', 'params'):
        given = ['--weights', tmp_path / 'a.pth', '--output', tmp_path / 'a.onnx', '--param_key', key]
        assert export(*given) == 0
        assert f'a.pth ({key})\n' in capsys.readouterr().out


def test_model_describes_itself(exported):
    net, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    channels = net.patch_embed.proj.in_channels

    def shape(value):
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in [*model.graph.input, *model.graph.output]} == {
        'image': ['batch', channels, 'height', 'width'],
        'restored': ['batch', net.output.out_channels, 'height', 'width'],
    }
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    kind = {1: 'grey', 3: 'RGB', 6: 'RGB of the left and the right view'}[channels]
    assert f'(batch, {channels}, height, width), {kind} in [0, 1]' in metadata['input']
    assert 'not clamped' in metadata['output'] and metadata['weights'] == 'net.pth (params)'
    options = json.loads(metadata['network_g'])
    assert options.pop('type') == 'Restormer'
    same = Restormer(**options)
    assert {name: p.shape for name, p in same.named_parameters()} == {
        name: p.shape for name, p in net.named_parameters()
    }


# --- the check ----------------------------------------------------------------------------------------------


def test_check_is_reported(weights, tmp_path, capsys, monkeypatch):
    assert export('--weights', weights, '--output', tmp_path / 'net.onnx') == 0
    first, *_ = capsys.readouterr().out.splitlines()
    start = 'checked: onnxruntime and PyTorch differ by at most '
    assert first.startswith(start) and float(first.removeprefix(start)) < 1e-5

    monkeypatch.setattr(export_onnx, 'onnxruntime', None)
    assert export('--weights', weights, '--output', tmp_path / 'net.onnx') == 0
    assert 'not checked: ' in capsys.readouterr().out
    session(tmp_path / 'net.onnx')


@pytest.mark.parametrize('wrong', ['another network', 'broken weights'])
def test_wrong_model_is_not_written(weights, old, capsys, monkeypatch, wrong):
    if wrong == 'another network':
        to_onnx = export_onnx.to_onnx
        other = export_onnx.AnySize(network(bias=True)).eval()
        monkeypatch.setattr(export_onnx, 'to_onnx', lambda net, *rest: to_onnx(other, *rest))
    else:
        net = network()
        net.output.weight.data.fill_(float('nan'))
        save(weights, net)
    assert export('--weights', weights, '--output', old) == 1
    out, err = capsys.readouterr()
    assert out == '' and len(err.splitlines()) == 1
    assert f'{old} is not written: onnxruntime and PyTorch differ by ' in err


def test_older_file_survives_ctrl_c(weights, old, monkeypatch):
    def interrupted(net, example, file, **options):
        file.write(b'the first bytes')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.onnx, 'export', interrupted)
    assert export('--weights', weights, '--output', old) == 130


# --- command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--weights', '{tmp}/none.pth'], 'none.pth: '),
        (['--weights', '{tmp}/out/net.onnx'], 'net.onnx is text, not weights'),
        (['--tlc', '100'], 'tlc: found 100; allowed: a window of a positive multiple of 8'),
        (['--output', '{tmp}/none/net.onnx'], 'none/net.onnx cannot be written: No such file or directory'),
        (['--output', '{tmp}/out/' + 300 * 'x'], 'xxx cannot be written: '),
        (['--output', '{tmp}/out'], 'out is a folder'),
        (['--output', '{tmp}/in/../in/net.pth'], 'net.pth is a folder, or the weights themselves'),
    ],
    ids=lambda value: ' '.join(value)[:40] if isinstance(value, list) else '',
)
def test_wrong_arguments(weights, old, tmp_path, capsys, arguments, says):
    before = weights.read_bytes()
    given = [argument.replace('{tmp}', str(tmp_path)) for argument in arguments]
    assert export('--weights', weights, *given) == 2
    out, err = capsys.readouterr()
    assert says in err.splitlines()[-1] and out == ''
    assert weights.read_bytes() == before


@pytest.mark.parametrize('flag', ['--tlc', '--fp16'])
def test_flag_for_a_restormer_alone(weights, old, capsys, monkeypatch, flag):
    monkeypatch.setattr(export_onnx, 'build_network', lambda weights: torch.nn.Conv2d(3, 3, 1))
    assert export('--weights', weights, '--output', old, flag) == 2
    says = r'(tlc|--fp16): found (True for )?the network Conv2d; allowed: (for )?Restormer alone\n$'
    assert re.search(says, ''.join(capsys.readouterr()))


def test_missing_onnx_is_a_sentence(weights, old, capsys, monkeypatch):
    monkeypatch.setattr(export_onnx, 'onnx', None)
    assert export('--weights', weights, '--output', old) == 2
    assert capsys.readouterr().err.endswith('the package onnx is required; pip install onnx\n')


@pytest.mark.slow
def test_as_a_program_without_arguments_from_another_folder(tmp_path):
    """The demo's weights, a default name, and no warnings."""
    command = [sys.executable, ROOT / 'scripts' / 'export_onnx.py']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    # ONNX Runtime may complain about a graphics card that it does not know.
    said = [line for line in done.stderr.splitlines() if 'onnxruntime:Default' not in line]
    assert (done.returncode, said) == (0, [])
    name = f'{default_weights("motion_deblurring").stem}.onnx'
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert name in done.stdout
    image = np.zeros((1, 3, 10, 13), np.float32)
    assert session(tmp_path / name).run(None, {'image': image})[0].shape == image.shape
