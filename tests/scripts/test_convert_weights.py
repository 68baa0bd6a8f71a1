"""scripts/convert_weights.py: the same tensors and options in either format; mistakes are one sentence."""

import pytest
import torch

from basicsr.archs.from_weights import build_network, network_options
from basicsr.archs.restormer_arch import Restormer
from basicsr.utils.checkpoint import load_weights, read_checkpoint, save_checkpoint
from basicsr.utils.cli import run

SMALL = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 2, 2, 4]}


def convert(*arguments):
    return run('scripts.convert_weights', list(map(str, arguments)))


@pytest.fixture(scope='module')
def params():
    torch.manual_seed(0)
    return Restormer(**SMALL).half().state_dict()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_of_another_program_keep_numbers_and_types(params, tmp_path, suffix, capsys):
    source, output = tmp_path / 'in.ckpt', tmp_path / f'out{suffix}'
    torch.save({'state_dict': {f'net.{name}': tensor for name, tensor in params.items()}}, source)
    output.write_bytes(b'older')
    assert convert(source, output) == 0
    assert f'weights: {source} (state_dict.net.)\n{output}: ' in capsys.readouterr().out
    found = read_checkpoint(output)
    torch.testing.assert_close(found['params'], dict(params), rtol=0, atol=0)
    assert found['network_g'] == network_options(load_weights(source))
    build_network(load_weights(output))


def test_conversion_to_safetensors_and_back_changes_nothing(params, tmp_path):
    first, between, last = (tmp_path / name for name in ('a.pth', 'b.safetensors', 'c.pth'))
    save_checkpoint(
        first, params, {'type': 'Restormer', **SMALL}, 7, {n: t + 1 for n, t in params.items()}, 256
    )
    assert convert(first, between, '--param_key', 'params') == convert(between, last) == 0
    old, new = read_checkpoint(first), read_checkpoint(last)
    torch.testing.assert_close(new['params'], old['params'], rtol=0, atol=0)
    assert 'params_ema' not in new
    assert all(new[name] == old[name] for name in ('network_g', 'iter', 'tlc'))


def test_weights_of_an_unknown_network_are_converted_without_options(tmp_path, capsys):
    torch.save({'body.w': torch.ones(3)}, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors') == 0
    assert 'without options of the network' in capsys.readouterr().out
    weights = load_weights(tmp_path / 'b.safetensors')
    assert weights.network_g is None and weights.params['body.w'].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['a.pth', 'b.bin'], 'OUTPUT: found b.bin; allowed: a name that ends in .pth or .safetensors'),
        (['a.pth', './a.pth'], 'the input itself; allowed: another file'),
        (['a.pth', 'folder.pth'], 'a folder or the input itself'),
        (['none.pth', 'b.pth'], 'none.pth: no such file'),
        (['a.pth', 'b.pth', '--param_key', 'ema'], "nothing under 'ema'; it has: w"),
    ],
)
def test_mistakes_are_named_and_write_nothing(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    torch.save({'w': torch.ones(3)}, 'a.pth')
    (tmp_path / 'folder.pth').mkdir()
    before = (tmp_path / 'a.pth').read_bytes()
    assert convert(*arguments) == 2
    assert says in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {'a.pth', 'folder.pth'}
    assert (tmp_path / 'a.pth').read_bytes() == before


def test_an_output_that_cannot_be_written_is_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({'w': torch.ones(3)}, 'a.pth')
    assert convert('a.pth', 'nowhere/b.pth') == 1
    assert 'nowhere/b.pth cannot be written: No such file or directory' in capsys.readouterr().err
