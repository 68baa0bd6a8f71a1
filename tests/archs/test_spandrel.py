"""spandrel, which chaiNNer and ComfyUI load models with, reads the checkpoints and computes the same pixels."""

import pytest
import torch

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference import Restorer
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.cli import run
from basicsr.utils.files import ROOT

spandrel = pytest.importorskip('spandrel')
pytest.importorskip('spandrel_extra_arches').install(ignore_duplicates=True)

SMALL = {'dim': 8, 'num_blocks': [1, 2, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 2, 2, 4]}
VARIANTS = {
    'RGB': {},
    'BiasFree': {'LayerNorm_type': 'BiasFree'},
    'biases': {'bias': True},
    'biases, BiasFree': {'bias': True, 'LayerNorm_type': 'BiasFree'},
    'dual pixel': {'inp_channels': 6, 'dual_pixel_task': True},
    'grey': {'inp_channels': 1, 'out_channels': 1, 'LayerNorm_type': 'BiasFree'},
    'another expansion': {'ffn_expansion_factor': 2},
}


def save(path, params_ema=False, **options):
    """A checkpoint of a network with random norms, temperatures and biases; as averaged weights, beside others."""
    torch.manual_seed(0)
    net = Restormer(**SMALL, **options)
    fresh = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'norm' in name or name.endswith(('temperature', 'bias')):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    sets = [fresh, net.state_dict()] if params_ema else [net.state_dict()]
    save_checkpoint(path, sets[0], {'type': 'Restormer', **SMALL, **options}, 7, *sets[1:], tlc=True)


def assert_same_pixels(path, original=None):
    """spandrel's result, which it clamps, is that of the Restorer, in single precision and without TLC."""
    model = spandrel.ModelLoader(device='cpu').load_from_file(path)
    restorer = Restorer.from_checkpoint(original or path, device='cpu', precision='fp32', tlc=False)
    for size in [(40, 56), (41, 53), (16, 9)]:
        image = torch.rand(1, model.input_channels, *size)
        with torch.inference_mode():
            found, expected = model(image), restorer.restore(image).clamp(0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_variant_gives_the_same_pixels(tmp_path, variant, suffix):
    save(tmp_path / f'net{suffix}', **VARIANTS[variant])
    assert_same_pixels(tmp_path / f'net{suffix}')


def test_averaged_weights_are_taken(tmp_path):
    save(tmp_path / 'net.pth', params_ema=True)
    assert_same_pixels(tmp_path / 'net.pth')


def test_checkpoint_of_a_training_run_gives_the_same_pixels(runs):
    name, options = runs.option_file(total_iter=2)
    network = [f'network_g:{key}={value}' for key, value in SMALL.items()]
    assert run('basicsr.train', ['-opt', str(options), '--force_yml', *network]) == 0
    checkpoint = ROOT / 'experiments' / name / 'models' / 'net_g_2.pth'
    assert torch.load(checkpoint, weights_only=True).keys() >= {'params', 'params_ema', 'network_g'}
    assert_same_pixels(checkpoint)


def test_convert_weights_makes_files_that_load(tmp_path):
    """Two sets of weights in one safetensors file, and names with a prefix, are only for our programs."""
    save(tmp_path / 'two.safetensors', params_ema=True)
    save(tmp_path / 'one.pth')
    params = torch.load(tmp_path / 'one.pth', weights_only=True)['params']
    mmagic = {'state_dict': {f'generator.{name}': tensor for name, tensor in params.items()}}
    torch.save(mmagic, tmp_path / 'mmagic.pth')
    for path in (tmp_path / 'two.safetensors', tmp_path / 'mmagic.pth'):
        with pytest.raises(spandrel.UnsupportedModelError):
            spandrel.ModelLoader(device='cpu').load_from_file(path)
        converted = path.with_name(f'converted-{path.name}')
        assert run('scripts.convert_weights', [str(path), str(converted)]) == 0
        assert_same_pixels(converted, original=path)
