import inspect
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from basicsr.archs.from_weights import build_network, load_pretrained, network_options
from basicsr.archs.restormer_arch import Restormer
from basicsr.utils.checkpoint import Weights, apply_weights, load_weights, read_checkpoint, save_checkpoint
from basicsr.utils.errors import CheckpointError

PUBLISHED = {name: option.default for name, option in inspect.signature(Restormer).parameters.items()}
FULL = {**PUBLISHED, 'num_blocks': [4, 6, 6, 8], 'heads': [1, 2, 4, 8]}  # lists, as YAML has them
TINY = {**FULL, 'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Restormer(**TINY)


@pytest.fixture
def saved(net, tmp_path):
    path = tmp_path / 'net_g_7.pth'
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **TINY}, 7)
    return path


def refusal(path, load=read_checkpoint):
    with pytest.raises(CheckpointError) as caught:
        load(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert '\n' not in sentence
    return sentence


# Not a checkpoint


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>404</html>', 'is a web page, not weights: the download failed'),
        (b'\xef\xbb\xbf\n  <HTML>quota exceeded</HTML>', 'is a web page'),
        (b'<?xml version="1.0"?><Error>NoSuchKey</Error>', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:1f\n', 'git-lfs pointer'),
        ('Größe: nicht gefunden\n'.encode(), 'is text'),
        (b'\x89PNG\r\n\x1a\n\x00\x00', 'is not a PyTorch checkpoint'),
        (bytes(4096), 'is not a PyTorch checkpoint'),
        (b'PK\x03\x04 and then nothing', 'is damaged or cut short'),
        (b'\x08\x08\x12\x07pytorch\x1a\x052.4.0', 'is an ONNX model: use the checkpoint that'),
        (b'\x1f\x8b\x08\x00', 'is a compressed archive: unpack it first'),
        (bytes(257) + b'ustar\x0000', 'is a compressed archive'),
        (b'\x40' + bytes(7) + b'{"a":', 'is damaged or cut short'),
        (pickle.dumps([1, 2], 2), 'is damaged'),
    ],
)
def test_other_kinds_of_files_are_recognised(tmp_path, content, says):
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    assert says in refusal(path)


def test_a_missing_file_and_a_folder(tmp_path):
    assert 'no such file' in refusal(tmp_path / 'none.pth')
    assert 'is a folder' in refusal(tmp_path)


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_model_objects_and_programs_are_refused_with_advice_to_save_tensors(tmp_path):
    layer, path = torch.nn.Linear(2, 2), tmp_path / 'a.pt2'
    program = torch.export.export(layer, (torch.ones(1, 2),))
    for save in (
        lambda: torch.save(layer, path),
        lambda: torch.save({'model': layer, 'epoch': 3}, path),
        lambda: torch.save(layer, path, _use_new_zipfile_serialization=False, pickle_protocol=4),
        lambda: torch.jit.save(torch.jit.script(layer), path),
        lambda: torch.export.save(program, path),
    ):
        save()
        assert 'save its tensors instead: torch.save(' in refusal(path)


def test_zip_files_that_are_not_checkpoints(tmp_path):
    path = tmp_path / 'weights.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('weights.pth', b'x')
    assert 'without weights in it' in refusal(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('net/data.pkl', b'x')
        archive.writestr('net/constants.pkl', b'x')
    assert 'TorchScript' in refusal(path)
    torch.save([1, 2], path)
    assert 'holds a list, not a dictionary' in refusal(path)


# Damage


@pytest.mark.parametrize('part', [0.01, 0.5, 0.999])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_cut_short(saved, part, zipped):
    if not zipped:
        torch.save(read_checkpoint(saved), saved, _use_new_zipfile_serialization=False)
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * part)])
    assert 'damaged' in refusal(saved)


def test_one_flipped_bit_in_a_tensor_is_found(saved, net):
    needle = net.state_dict()['latent.0.attn.qkv.weight'].numpy().tobytes()
    content = bytearray(saved.read_bytes())
    content[content.index(needle) + 100] ^= 1
    saved.write_bytes(content)
    sentence = refusal(saved)
    assert 'is damaged' in sentence and 'fails its checksum' in sentence


# Malice


class Malice:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('kind', ['zip', 'legacy', 'pickle'])
def test_a_pickle_with_code_runs_nothing(tmp_path, kind, protocol, recwarn):
    path, trace = tmp_path / 'evil.pth', tmp_path / 'trace'
    content = {'params': {'a': torch.zeros(1)}, 'extra': Malice(str(trace))}
    if kind == 'pickle':
        path.write_bytes(pickle.dumps({'params': Malice(str(trace))}, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == 'zip')
    sentence = refusal(path, load_weights)
    assert f'is refused: it holds the Python object {os.mkdir.__module__}.mkdir' in sentence
    assert not trace.exists()
    assert not recwarn.list
    assert 'weights_only' not in sentence  # torch's advice to load it anyway


def test_control_characters_of_a_file_are_escaped(net, tmp_path):
    torch.save({'\x1b[31mparams\n': 1}, tmp_path / 'a.pth')
    assert '\x1b' not in refusal(tmp_path / 'a.pth', load_weights)
    torch.save({'\x1b[31m\n': net.state_dict()}, tmp_path / 'a.pth')
    assert load_weights(tmp_path / 'a.pth').key.isprintable()


# Where in the file the weights are


def test_ema_is_preferred_and_a_key_can_be_named(tmp_path):
    path = tmp_path / 'a.pth'
    save_checkpoint(path, {'w': torch.zeros(2)}, {'type': 'X'}, 5, params_ema={'w': torch.ones(2)})
    weights = load_weights(path)
    assert (weights.key, weights.params['w'].tolist()) == ('params_ema', [1, 1])
    assert load_weights(path, 'params').params['w'].tolist() == [0, 0]
    with pytest.raises(
        CheckpointError, match="nothing under 'ema'; it has: params, network_g, iter, tlc, params_ema"
    ):
        load_weights(path, 'ema')


def test_tlc_defaults_to_the_setting_of_the_file(tmp_path):
    for tlc in (False, True, 256):
        save_checkpoint(tmp_path / 'a.pth', {'w': torch.zeros(2)}, {'type': 'X'}, 5, tlc=tlc)
        weights = load_weights(tmp_path / 'a.pth')
        assert [weights.with_tlc(asked) for asked in (None, False, 128)] == [tlc, False, 128]
    torch.save({'params': {'w': torch.zeros(2)}, 'tlc': 'yes'}, tmp_path / 'a.pth')
    assert 'tlc is a str; allowed: ' in refusal(tmp_path / 'a.pth', load_weights)
    torch.save({'tlc': torch.zeros(2)}, tmp_path / 'a.pth')  # a network may call a parameter so
    assert load_weights(tmp_path / 'a.pth').tlc is False


def prefixed(prefix, params):
    return {f'{prefix}{name}': tensor for name, tensor in params.items()}


def changed(params):
    return {name: tensor + 1 for name, tensor in params.items()}


VGG = {'loss.vgg.0.weight': torch.ones(2), 'step_counter': torch.zeros(())}
# Name: (the file, as a function of the network's tensors; where they are found).
FOREIGN = {
    'mmagic': (
        lambda p: {
            'meta': {'epoch': 3},
            'state_dict': {
                'step_counter': torch.zeros(1),
                **prefixed('generator.', changed(p)),
                **prefixed('generator_ema.', p),
                'data_preprocessor.mean': torch.zeros(3, 1, 1),
            },
        },
        'state_dict.generator_ema.',
    ),
    'lightning': (lambda p: {'epoch': 1, 'state_dict': {**VGG, **prefixed('net.', p)}}, 'state_dict.net.'),
    'prefixes in prefixes': (lambda p: prefixed('system.model.netG.', p) | VGG, 'system.model.netG.'),
    'one of many compiled': (lambda p: prefixed('module._orig_mod.', p), 'module.'),
    'AveragedModel': (lambda p: {**prefixed('module.', p), 'n_averaged': torch.tensor(3)}, 'module.'),
    'DataParallel': (lambda p: {'net_g': prefixed('module.', p), 'iter': 3}, 'net_g.module.'),
    'parts wrapped': (
        lambda p: {'model': {n.replace('.attn.', '.attn._fsdp_wrapped_module.'): t for n, t in p.items()}},
        'model',
    ),
    'a key of its own': (lambda p: {'weights_of_my_net': p, 'lr': 0.1}, 'weights_of_my_net'),
    'deep': (lambda p: {'state': {'nets': {'g': p}, 'epoch': 3}}, 'state.nets.g'),
    'beside other things': (lambda p: {**p, 'epoch': 3, 'optimizer': {'state': {0: {'a': torch.ones(1)}}}}, ''),
    'averaged by name': (
        lambda p: {'online_model.' + n: t + 1 for n, t in p.items()} | prefixed('ema_model.', p),
        'ema_model.',
    ),
    'averaged by key and name': (
        lambda p: {'ema': prefixed('online_model.', changed(p)) | prefixed('ema_model.', p)},
        'ema.ema_model.',
    ),
    'shadow': (lambda p: {'net': {'raw': changed(p), 'shadow': p}}, 'net.shadow'),
    'fewest levels': (lambda p: {'teacher': {'net': changed(p)}, 'student': p}, 'student'),
    'first in the file': (lambda p: {'a': p, 'b': changed(p)}, 'a'),
    'arrays': (lambda p: {'params': {n: t.numpy() for n, t in p.items()}}, 'params'),
    'parameters': (lambda p: {'params': {n: torch.nn.Parameter(t) for n, t in p.items()}}, 'params'),
}


@pytest.mark.parametrize('form', FOREIGN)
def test_weights_of_other_programs_are_found_by_the_names_of_the_tensors(net, tmp_path, form):
    wrap, key = FOREIGN[form]
    torch.save(wrap(net.state_dict()), tmp_path / 'a.pth')
    weights = load_weights(tmp_path / 'a.pth')
    assert weights.key == key
    torch.testing.assert_close(build_network(weights).state_dict(), net.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    'name',
    [
        'params_ema', 'EMA', 'modelEma', 'emaModel', 'state_dict_ema', 'averaged', 'net_avg', 'swa_model', 'shadow',
        '_average_model', 'polyak',
    ],
)  # fmt: skip
def test_averaged_weights_are_known_by_their_key(net, tmp_path, name):
    torch.save({key: net.state_dict() for key in ('params', name, 'schema')}, tmp_path / 'a.pth')
    assert load_weights(tmp_path / 'a.pth').key == name


@pytest.mark.parametrize('prefix', ['', 'net.', 'a.b.c.'])
def test_weights_of_another_network_are_found_by_its_names(tmp_path, prefix):
    def network():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))

    net, other = network(), network()
    torch.save({'epoch': 3, 'state_dict': prefixed(prefix, net.state_dict())}, tmp_path / 'a.pth')
    load_pretrained(other, tmp_path / 'a.pth')
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_a_network_that_contains_a_restormer_keeps_its_names(net, tmp_path):
    params = {**prefixed('restorer.', net.state_dict()), 'head.weight': torch.ones(2)}
    save_checkpoint(tmp_path / 'a.pth', params, {'type': 'Mine'}, 1)
    assert load_weights(tmp_path / 'a.pth').params.keys() == params.keys()


@pytest.mark.parametrize(
    ('key', 'place'),
    [
        ('generator', 'state_dict.generator.'),
        ('state_dict.generator.', 'state_dict.generator.'),
        ('state_dict', 'state_dict.generator_ema.'),
        ('generator_ema.', 'state_dict.generator_ema.'),
    ],
)
def test_a_key_chooses_among_the_places(net, tmp_path, key, place):
    torch.save(FOREIGN['mmagic'][0](net.state_dict()), tmp_path / 'a.pth')
    weights = load_weights(tmp_path / 'a.pth', key)
    assert weights.key == place
    expected = net.output.weight + (0 if 'ema' in place else 1)
    assert torch.equal(weights.params['output.weight'], expected)
    says = "nothing under 'params'; it has: state_dict.generator_ema., state_dict.generator., meta, state_dict"
    with pytest.raises(CheckpointError, match=says):
        load_weights(tmp_path / 'a.pth', 'params')


def test_a_dictionary_that_contains_itself_is_refused(tmp_path):
    loop = {'w': torch.ones(1)}
    loop.update({f'k{i}': loop for i in range(200)})
    torch.save(loop, tmp_path / 'a.pth')
    refusal(tmp_path / 'a.pth', load_weights)


# safetensors


@pytest.mark.parametrize('averaged', [False, True])
def test_safetensors_hold_all_that_a_checkpoint_does(net, tmp_path, averaged):
    params, path = net.state_dict(), tmp_path / 'a.safetensors'
    options = {'type': 'Restormer', **TINY}
    save_checkpoint(path, params, options, 7, changed(params) if averaged else None, tlc=256)
    weights = load_weights(path)
    assert (weights.key, weights.network_g, weights.tlc, weights.iteration) == (
        'params_ema' if averaged else 'params', options, 256, 7,
    )  # fmt: skip
    again = build_network(load_weights(path, 'params'))
    torch.testing.assert_close(again.state_dict(), params, rtol=0, atol=0)
    names = safetensors.torch.load(path.read_bytes()).keys()
    assert names == (
        {*prefixed('params.', params), *prefixed('params_ema.', params)} if averaged else params.keys()
    )


@pytest.mark.parametrize('prefix', ['', 'net.'])
@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth'])
def test_safetensors_of_other_programs_load(net, tmp_path, prefix, name):
    safetensors.torch.save_file(prefixed(prefix, net.state_dict()), tmp_path / name, {'format': 'pt'})
    weights = load_weights(tmp_path / name)
    assert weights.key == prefix and network_options(weights) == {'type': 'Restormer', **TINY}
    torch.testing.assert_close(build_network(weights).state_dict(), net.state_dict(), rtol=0, atol=0)


def test_shared_tensors_are_written_to_safetensors(tmp_path):
    tensor = torch.ones(3)
    save_checkpoint(tmp_path / 'a.safetensors', {'a': tensor, 'b': tensor}, {'type': 'X'}, 1)
    assert load_weights(tmp_path / 'a.safetensors').params['b'].tolist() == [1, 1, 1]


@pytest.mark.parametrize(('suffix', 'protocol'), [('.pth', 2), ('.pth', 4), ('.safetensors', None)])
def test_random_damage_loads_or_is_one_sentence(tmp_path, suffix, protocol):
    path, rng = tmp_path / f'a{suffix}', np.random.default_rng(1)
    save_checkpoint(path, {'w': torch.ones(3), 'b': torch.zeros(2)}, {'type': 'X'}, 1)
    if suffix == '.pth':
        torch.save(
            read_checkpoint(path) | {'n': np.float64(1), 'a': np.ones(2)}, path, pickle_protocol=protocol
        )
    content = path.read_bytes()
    # Past the checksums of the zip file: damage its pickle, and write the archive anew.
    for _ in range(60):
        damaged = bytearray(content)
        if suffix == '.pth' and rng.random() < 0.7:
            damaged = repacked(content, rng)
        else:
            for place in rng.integers(len(damaged), size=rng.integers(1, 4)):
                damaged[place] = rng.integers(256)
            damaged = damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.3 else damaged
        path.write_bytes(damaged)
        try:
            load_weights(path)
        except CheckpointError as error:
            assert '\n' not in str(error)


def test_a_damaged_zip_directory_is_not_taken_for_a_failing_disk(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'w': torch.ones(3)}, path)
    content = path.read_bytes()
    for place in range(1, 99):  # from the end: its three records
        damaged = bytearray(content)
        damaged[-place] ^= 255
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert type(error) is CheckpointError, error


def repacked(content, rng):
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, 'w') as new:
        for name in old.namelist():
            data = bytearray(old.read(name))
            if name.endswith('data.pkl'):
                for place in rng.integers(len(data), size=rng.integers(1, 4)):
                    data[place] = rng.integers(256)
            new.writestr(name, bytes(data))
    return target.getvalue()


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
    ('wrap', 'key'),
    [
        (lambda p: {'params': p}, 'params'),
        (lambda p: {'params_ema': {}, 'params': p}, 'params'),
        (lambda p: {'state_dict': p, 'epoch': 3}, 'state_dict'),
        (lambda p: p, ''),
    ],
)
def test_the_usual_wrappers_and_the_legacy_format(tmp_path, wrap, key, zipped):
    torch.save(wrap({'w': torch.arange(3.0)}), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    weights = load_weights(tmp_path / 'a.pth')
    assert (weights.key, weights.params['w'].tolist()) == (key, [0, 1, 2])


@pytest.mark.parametrize(
    ('names', 'bare'),
    [
        *(
            ([f'{prefix}a.w', f'{prefix}b'], ['a.w', 'b'])
            for prefix in ('module.', '_orig_mod.', '_orig_mod.module.', 'module._orig_mod.')
        ),
        (
            ['encoder._orig_mod.w', 'module.w'],
            ['encoder.w', 'module.w'],
        ),  # a compiled part; a part called module
    ],
)
def test_prefixes_are_removed(tmp_path, names, bare):
    torch.save({'params': dict.fromkeys(names, torch.ones(1))}, tmp_path / 'a.pth')
    assert list(load_weights(tmp_path / 'a.pth').params) == bare


@pytest.mark.parametrize(
    'tensor',
    [
        torch.ones(2, device='meta'),
        torch.eye(3).to_sparse(),
        torch.ones(1, dtype=torch.float16).expand(1 << 45),
    ],
    ids=['without numbers', 'sparse', 'one number for many'],
)
def test_tensors_of_an_uncommon_kind_are_refused(tmp_path, tensor):
    torch.save({'params': {'fine': torch.ones(2)[:1], 'odd': tensor}}, tmp_path / 'a.pth')
    assert "an uncommon kind under 'params': odd; allowed: dense" in refusal(tmp_path / 'a.pth', load_weights)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_keep_their_type_and_the_network_is_in_single_precision(net, tmp_path, dtype):
    torch.save({'params': net.to(dtype).state_dict()}, tmp_path / 'a.pth')
    weights = load_weights(tmp_path / 'a.pth')
    assert {tensor.dtype for tensor in weights.params.values()} == {dtype}
    for name, tensor in build_network(weights).state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, weights.params[name].float())


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ({'optimizer': {'lr': 1}, 'epoch': 3}, 'entries that are not tensors at its top: optimizer, epoch'),
        ({'params': {'w': torch.ones(1), 'name': 'x'}}, "entries that are not tensors under 'params': name"),
        ({'params': {}, 'epoch': 3}, 'entries that are not tensors at its top: params, epoch'),
        ({'params': 3}, 'entries that are not tensors at its top: params'),
        ({}, 'no tensors at its top; it has: nothing'),
        ({'params': {'w': torch.ones(1)}, 'network_g': 'Restormer'}, 'network_g is a str'),
        ({f'k{i:02}': i for i in range(20)}, 'k07 and 12 more'),
    ],
)
def test_files_without_weights_list_their_keys(tmp_path, content, says):
    torch.save(content, tmp_path / 'a.pth')
    assert says in refusal(tmp_path / 'a.pth', load_weights)


# Copying into a network


class Wrapped(torch.nn.Module):
    """Has names like those that DataParallel makes."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Linear(2, 2)


def test_a_network_with_a_prefix_in_its_own_names(tmp_path):
    net, other = Wrapped(), Wrapped()
    save_checkpoint(tmp_path / 'a.pth', net.state_dict(), {'type': 'Wrapped'}, 1)
    assert apply_weights(other, load_weights(tmp_path / 'a.pth')) == []
    assert torch.equal(other.module.weight, net.module.weight)


@pytest.mark.parametrize('kind', ['our own', 'published'])
def test_round_trip_is_exact(saved, net, kind):
    if kind == 'published':
        torch.save({'params': net.state_dict()}, saved)
    weights = load_weights(saved)
    assert (weights.path, weights.key) == (saved, 'params')
    assert network_options(weights) == {'type': 'Restormer', **TINY}
    again = build_network(weights)
    assert not again.training
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert list(saved.parent.iterdir()) == [saved]


def test_a_saved_view_does_not_carry_its_storage(tmp_path):
    whole = torch.zeros(1000, 1000, requires_grad=True)
    save_checkpoint(tmp_path / 'a.pth', {'module.w': whole[:2, :2]}, {}, 1)
    assert (tmp_path / 'a.pth').stat().st_size < 10_000
    params = read_checkpoint(tmp_path / 'a.pth')['params']
    assert list(params) == ['w'] and not params['w'].requires_grad


def test_strict_lists_every_kind_of_difference_and_copies_nothing(saved, net):
    params = load_weights(saved).params
    del params['patch_embed.proj.weight']
    params['extra'] = torch.ones(1)
    params['output.weight'] = torch.ones(3, 4)
    for i in range(30):
        params[f'more.{i}'] = torch.ones(1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    params['latent.0.attn.temperature'] = params['latent.0.attn.temperature'] + 1
    with pytest.raises(CheckpointError) as caught:
        apply_weights(net, Weights(saved, params, 'params'))
    sentence = str(caught.value)
    assert sentence.startswith(f'{saved} does not fit this Restormer: ')
    assert 'missing in the file: patch_embed.proj.weight;' in sentence
    assert 'not in the network: extra, more.0,' in sentence and 'and 23 more' in sentence
    assert 'of another shape: output.weight is 3×4 and should be 3×16×3×3' in sentence
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_not_strict_copies_matching_tensors_and_returns_the_differences(saved):
    weights = load_weights(saved)
    torch.manual_seed(2)
    other = Restormer(**{**TINY, 'heads': [1, 1, 2, 4], 'LayerNorm_type': 'BiasFree'})
    differences = apply_weights(other, weights, strict=False)
    assert 'latent.0.attn.temperature is 2×1×1 and should be 4×1×1' in differences
    assert 'latent.0.norm1.body.bias is not in the network' in differences
    assert torch.equal(other.output.weight, weights.params['output.weight'])
    assert len(differences) == 1 + sum(name.endswith('body.bias') for name in weights.params)


def test_not_strict_still_refuses_when_nothing_fits(net, tmp_path):
    with pytest.raises(CheckpointError, match='does not fit this Restormer'):
        apply_weights(net, Weights(tmp_path / 'a.pth', {'w': torch.ones(1)}, ''), strict=False)


# Options inferred from the tensors


@pytest.mark.parametrize(
    'options',
    [
        FULL,
        {**FULL, 'LayerNorm_type': 'BiasFree'},
        {**FULL, 'bias': True},
        {**FULL, 'inp_channels': 1, 'out_channels': 1, 'LayerNorm_type': 'BiasFree'},
        {**FULL, 'inp_channels': 6, 'dual_pixel_task': True},
        {**FULL, 'dim': 32, 'num_blocks': [1, 2, 3, 4], 'ffn_expansion_factor': 2.0},
        {**TINY, 'ffn_expansion_factor': 1.5},
        {**TINY, 'num_blocks': [0, 1, 2, 0], 'num_refinement_blocks': 0, 'heads': [1, 1, 2, 1]},
    ],
)
def test_options_are_inferred_from_a_file_that_has_only_params(options, tmp_path):
    with torch.device('meta'):
        params = Restormer(**options).state_dict()
    assert network_options(Weights(tmp_path / 'a.pth', params, 'params')) == {'type': 'Restormer', **options}


@pytest.mark.parametrize('factor', [0.7, 1.0, 2.25, 8 / 3, 3.14159, np.pi])
def test_an_odd_expansion_factor_is_inferred_up_to_the_same_shapes(factor, tmp_path):
    with torch.device('meta'):
        params = Restormer(**{**FULL, 'ffn_expansion_factor': factor}).state_dict()
        inferred = network_options(Weights(tmp_path / 'a.pth', params, 'params'))
        again = Restormer(**{name: value for name, value in inferred.items() if name != 'type'}).state_dict()
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in params.items()}


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (None, 'not those of a Restormer'),
        ({'latent.0.ffn.project_in.weight': torch.zeros(2, 64, 1, 1)}, 'not those of a Restormer'),
        ({'latent.999999999.attn.temperature': torch.zeros(())}, 'does not fit this Restormer'),
    ],
)
def test_tensors_of_another_network_are_refused(net, tmp_path, change, says):
    params = torch.nn.Conv2d(3, 3, 3).state_dict() if change is None else {**net.state_dict(), **change}
    with pytest.raises(CheckpointError, match=says):
        build_network(Weights(tmp_path / 'a.pth', params, 'params'))


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'type': 'Restormer', 'width': 3}, 'unexpected keyword argument'),
        ({'type': 'Restormer', **TINY, 'dim': 7}, 'dim: found 7'),
        ({'type': 'Restormer', **TINY, 'dim': 'wide'}, 'cannot be built'),
        ({'type': 'Restormer', **TINY, 'heads': None}, 'cannot be built'),
        ({'type': 'Restormer', **TINY, 'ffn_expansion_factor': float('inf')}, 'cannot be built'),
        ({'type': 'Restormer', **TINY, 'ffn_expansion_factor': float('nan')}, 'cannot be built'),
        ({'type': 'NAFNet'}, "no architecture is called 'NAFNet'; there are: "),
        ({'type': ['Restormer']}, 'cannot be built'),
        ({'type': 'Restormer', 3: 4}, 'cannot be built'),
        ({'type': 'Restormer', **TINY, 'bias': True}, 'does not fit this Restormer: missing in the file'),
    ],
)
def test_a_network_g_that_makes_no_network(net, tmp_path, options, says):
    path = tmp_path / 'a.pth'
    save_checkpoint(path, net.state_dict(), options, 1)
    assert says in refusal(path, lambda path: build_network(load_weights(path)))


def test_a_failed_save_keeps_the_old_file(saved):
    old = saved.read_bytes()
    with pytest.raises(Exception, match='pickle'):
        save_checkpoint(saved, {'w': torch.ones(1)}, {'callback': lambda: None}, 8)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]
