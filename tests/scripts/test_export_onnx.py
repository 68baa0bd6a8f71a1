"""The exported model against PyTorch, and that a failed export is a sentence and leaves older files alone."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference.restorer import restore_tensor
from basicsr.tasks import default_weights
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.files import ROOT

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

SCRIPT = ROOT / 'scripts' / 'export_onnx.py'
SMALL = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 2, 2, 4]}
KINDS = [
    {},
    {'LayerNorm_type': 'BiasFree'},
    {'bias': True},
    {'inp_channels': 6, 'dual_pixel_task': True},
    {'inp_channels': 1, 'out_channels': 1},
]


def _load():
    spec = importlib.util.spec_from_file_location('export_onnx', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


export_onnx = _load()


def network(**options):
    torch.manual_seed(0)
    net = Restormer(**SMALL, **options).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'norm' in name or name.endswith(('temperature', 'bias')):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def save(path, net, **options):
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **SMALL, **options}, 7)


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
    """A network, and the file that the script makes of its weights, and the same loaded."""
    folder = tmp_path_factory.mktemp('onnx')
    net = network(**request.param)
    save(folder / 'net.pth', net, **request.param)
    assert export_onnx.main(['--weights', str(folder / 'net.pth'), '--output', str(folder / 'net.onnx')]) == 0
    return net, folder / 'net.onnx', session(folder / 'net.onnx')


def test_it_gives_what_the_network_gives(exported):
    """For one and for several images, tall, wide, small, and none of the size that was traced."""
    net, _, model = exported
    for batch, *size in [(1, 40, 56), (3, 72, 16), (2, 8, 200), (1, 8, 8)]:
        image = torch.rand(batch, net.patch_embed.proj.in_channels, *size)
        with torch.inference_mode():
            expected = net(image).numpy()
        (restored,) = model.run(None, {'image': image.numpy()})
        assert (restored.shape, restored.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-4)


def test_it_pads_as_the_demo_does(exported):
    """A side of 9 reflects seven of its eight pixels; one of 4 lacks one to reflect four, and repeats the last."""
    net, _, model = exported
    for size in [(41, 43), (39, 104), (48, 100), (9, 15), (5, 61), (4, 12), (3, 5), (17, 1), (1, 1)]:
        image = torch.rand(1, net.patch_embed.proj.in_channels, *size)
        with torch.inference_mode():
            expected = restore_tensor(net, image).numpy()
        (restored,) = model.run(None, {'image': image.numpy()})
        assert restored.shape == expected.shape
        np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-4, err_msg=str(size))


def test_it_says_what_it_is(exported):
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


def test_the_model_is_checked(weights, tmp_path, capsys):
    assert export_onnx.main(['--weights', str(weights), '--output', str(tmp_path / 'net.onnx')]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    start = 'checked: onnxruntime and PyTorch differ by at most '
    assert first.startswith(start) and float(first.removeprefix(start)) < 1e-5


def test_without_onnxruntime_it_says_that_it_was_not_checked(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert export_onnx.main(['--weights', str(weights), '--output', str(tmp_path / 'net.onnx')]) == 0
    assert 'not checked: ' in capsys.readouterr().out
    session(tmp_path / 'net.onnx')


@pytest.mark.parametrize('wrong', ['another network', 'broken weights'])
def test_a_wrong_model_is_not_written(weights, old, capsys, monkeypatch, wrong):
    if wrong == 'another network':
        export = export_onnx.to_onnx
        other = export_onnx.any_size(network(bias=True))
        monkeypatch.setattr(export_onnx, 'to_onnx', lambda net, *rest: export(other, *rest))
    else:
        net = network()
        net.output.weight.data.fill_(float('nan'))
        save(weights, net)
    with pytest.raises(SystemExit) as caught:
        export_onnx.main(['--weights', str(weights), '--output', str(old)])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert out == '' and len(err.splitlines()) == 1
    assert f'{old} is not written: onnxruntime and PyTorch differ by ' in err


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_older_file_outlives_a_failed_export(weights, old, monkeypatch, error):
    def fail(net, example, file, **options):
        file.write(b'the first bytes')
        raise error('of the exporter')

    monkeypatch.setattr(torch.onnx, 'export', fail)
    command = ['--weights', str(weights), '--output', str(old)]
    if error is KeyboardInterrupt:
        assert export_onnx.main(command) == 130
    else:
        with pytest.raises(RuntimeError, match='of the exporter'):
            export_onnx.main(command)


# --- command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--weights', '{tmp}/none.pth'], 'none.pth: there is no such weights file'),
        (['--weights', '{tmp}/out/net.onnx'], 'net.onnx is text, not weights'),
        (['--output', '{tmp}/none/net.onnx'], 'none/net.onnx cannot be written: No such file or directory'),
        (['--output', '{tmp}/out/' + 300 * 'x'], 'xxx cannot be written: '),
        (['--output', '{tmp}/out'], 'out is a folder'),
        (['--output', '{tmp}/in/../in/net.pth'], 'net.pth is a folder, or the weights themselves'),
        (['--opset'], 'unrecognized arguments: --opset'),
    ],
    ids=lambda value: ' '.join(value)[:40] if isinstance(value, list) else '',
)
def test_a_wrong_argument_is_one_sentence_and_status_2(weights, old, tmp_path, capsys, arguments, says):
    before = weights.read_bytes()
    given = [argument.replace('{tmp}', str(tmp_path)) for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        export_onnx.main(['--weights', str(weights), *given])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert 'error: ' in last and says in last and out == ''
    assert weights.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_without_the_right_to_write(weights, old, capsys):
    old.parent.chmod(0o500)
    try:
        with pytest.raises(SystemExit) as caught:
            export_onnx.main(['--weights', str(weights), '--output', str(old)])
    finally:
        old.parent.chmod(0o700)
    assert caught.value.code == 2
    assert f'--output {old} cannot be written: Permission denied' in capsys.readouterr().err


def test_without_onnx_it_says_what_to_install(weights, old, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(SystemExit) as caught:
        export_onnx.main(['--weights', str(weights), '--output', str(old)])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert 'the package onnx is needed' in last and last.endswith('; pip install onnx')


def test_help_does_not_wait_for_torch(capsys, monkeypatch):
    for name in ('torch', 'onnx', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    with pytest.raises(SystemExit) as caught:
        _load().main(['--help'])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert '--weights' in text and '--output' in text


def test_as_a_program_without_arguments_from_another_folder(tmp_path):
    """The demo's weights, a name of their own, and no warnings."""
    done = subprocess.run(
        [sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    # ONNX Runtime may complain of a graphics card that it does not know.
    said = [line for line in done.stderr.splitlines() if 'onnxruntime:Default' not in line]
    assert (done.returncode, said) == (0, [])
    name = f'{default_weights("motion_deblurring").stem}.onnx'
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert name in done.stdout
    image = np.zeros((1, 3, 10, 13), np.float32)
    assert session(tmp_path / name).run(None, {'image': image})[0].shape == image.shape
