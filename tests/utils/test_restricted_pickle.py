"""Every pickle protocol, NumPy's numbers and objects of other packages, against what was saved; code never runs."""

import argparse
import builtins
import collections
import importlib
import io
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from basicsr.utils import restricted_pickle

FORMS = [(protocol, zipped) for protocol in (2, 3, 4, 5) for zipped in (True, False)]


def saved(content, protocol=2, zipped=True):
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    file.seek(0)
    return file


def load(file):
    return restricted_pickle.load(*restricted_pickle.as_protocol_2(file))


def round_trip(content, *form):
    return load(saved(content, *form))


@pytest.mark.parametrize(('protocol', 'zipped'), FORMS)
def test_tensors_and_plain_values_are_the_same_in_every_protocol(protocol, zipped):
    shared = torch.arange(12.0).reshape(3, 4)
    content = {
        'views': [shared, shared[:, 1:], shared.t()],
        'types': [
            torch.ones(2, dtype=each) for each in (torch.float16, torch.bfloat16, torch.int64, torch.bool)
        ],
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'ordered': collections.OrderedDict(b=1, a=2),
        'size': torch.Size([1, 2]),
        'device': torch.device('cpu'),
        'numbers': [0, -1, 255, 65536, 10**30, -(2**40), 0.5, -0.0, float('inf'), True, None],
        'texts': ['', 'ß' * 300, 'same', 'same', b'', b'\xff\x00', '\n'],
        'tuples': [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        'empty': [{}, []],
    }
    content['again'] = content['texts']
    found = round_trip(content, protocol, zipped)
    torch.testing.assert_close(found['views'], content['views'], rtol=0, atol=0)
    assert found['views'][0].data_ptr() == found['views'][2].data_ptr()
    torch.testing.assert_close(found['types'], content['types'], rtol=0, atol=0)
    assert torch.equal(found['parameter'], content['parameter'])
    assert found['again'] is found['texts']
    others = content.keys() - {'views', 'types', 'parameter'}
    assert repr({name: found[name] for name in others}) == repr({name: content[name] for name in others})


@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
@pytest.mark.parametrize(('protocol', 'zipped'), FORMS)
def test_numpy_arrays_and_scalars_are_data(protocol, zipped, core):
    values = {
        'scalars': [np.float64(2.5), np.int64(-3), np.bool_(True), np.float16(0.5), np.str_('ab')],
        'arrays': [
            np.arange(6.0).reshape(2, 3), np.arange(6, dtype='>i4').reshape(2, 3).T, np.empty((0, 3)), np.array(4),
            np.array(['ab', 'c']), np.ones((2, 2), bool), np.array([1 + 2j]),
        ],
    }  # fmt: skip
    file = saved(values, protocol, zipped)
    if protocol == 2 and zipped:  # the name of its module is that of another version of NumPy
        file = renamed(file, b'cnumpy._core.', f'c{core}.'.encode())
    found = load(file)
    for old, new in zip(
        [*values['scalars'], *values['arrays']], [*found['scalars'], *found['arrays']], strict=True
    ):
        assert old.dtype.newbyteorder('=') == new.dtype.newbyteorder('=') and old.shape == new.shape
        assert old.tolist() == new.tolist()
    assert [type(each) for each in found['scalars']] == [type(each) for each in values['scalars']]


def renamed(file, old, new):
    target = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, 'w') as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name).replace(old, new))
    target.seek(0)
    return target


class EasyDict(dict):
    pass


class History:
    def __init__(self):
        self.values = np.ones(3)


@pytest.mark.parametrize(('protocol', 'zipped'), FORMS)
def test_objects_of_other_packages_become_dictionaries(protocol, zipped, monkeypatch):
    package = types.ModuleType('other_package')
    for each in (EasyDict, History):
        monkeypatch.setattr(each, '__module__', 'other_package')
        setattr(package, each.__name__, each)
    monkeypatch.setitem(sys.modules, 'other_package', package)
    easy = EasyDict(lr=0.1)
    easy.depth = 3
    counts = collections.defaultdict(list, a=[1])
    content = {
        'w': torch.ones(2), 'easy': easy, 'history': History(), 'counts': counts, 'path': pathlib.Path('a/b'),
        'deque': collections.deque([1, 2], 5),
        'namespace': argparse.Namespace(seed=1), 'set': {1}, 'types': [int, np.float32],
    }  # fmt: skip
    if zipped:  # the old format has the source code of modules
        content['loss'] = torch.nn.L1Loss()
    file = saved(content, protocol, zipped)
    monkeypatch.delitem(sys.modules, 'other_package')
    monkeypatch.setattr(importlib, 'import_module', lambda *_: pytest.fail('a package was imported'))
    before = torch.serialization.get_safe_globals()
    found = load(file)
    assert found['w'].tolist() == [1, 1] and found['easy'] == {'lr': 0.1} and found['counts'] == {'a': [1]}
    assert all(
        type(found[name]) is collections.OrderedDict
        for name in found.keys() & {'history', 'path', 'namespace', 'loss'}
    )
    assert [*found['set']] == [1] and found['deque'] == [1, 2]
    assert {*torch.serialization.get_safe_globals()} == {*before}


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


TRACE = 'trace.txt'
CODE = f'open({TRACE!r}, "w")'
CALLS = {
    'os.system': Call(os.system, f'echo > {TRACE}'),
    'eval': Call(builtins.eval, CODE),
    'exec': Call(builtins.exec, CODE),
    'open': Call(builtins.open, TRACE, 'w'),
    'getattr': Call(getattr, 'a', 'upper'),
    'import': Call(importlib.import_module, 'this'),
    'path': Call(pathlib.Path.touch, pathlib.Path(TRACE)),
    'numpy.load': Call(np.load, TRACE),
    'numpy.save': Call(np.save, TRACE, 1),
    'torch.load': Call(torch.load, TRACE),
    'torch.hub': Call(torch.hub.load, 'a', 'b'),
    'as a name alone': os.system,
    'in an array': np.array([Call(builtins.eval, CODE)], object),
    'in a state': Call(collections.OrderedDict, [Call(builtins.eval, CODE)]),
}


@pytest.mark.parametrize(('protocol', 'zipped'), FORMS)
@pytest.mark.parametrize('kind', CALLS)
def test_a_call_is_refused_and_not_made(kind, protocol, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        round_trip({'w': torch.ones(1), 'x': CALLS[kind]}, protocol, zipped)
    assert not [*tmp_path.iterdir()]


def in_a_file(pickled):
    """A checkpoint with this pickle."""
    with zipfile.ZipFile(saved({'w': torch.ones(1)})) as archive:
        name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
        return restricted_pickle._with_member(archive, name, pickled)


def text(value):
    return pickle.SHORT_BINUNICODE + struct.pack('B', len(value)) + value.encode()


@pytest.mark.parametrize(
    'pickled',
    [
        text('posix') + text('system') + b'\x93.',
        text('builtins') + text('eval') + b'\x93' + text(CODE) + b'\x85R.',
        # names that are put together, remembered, or smuggled behind a line break
        text('builtins') + b'\x94' + text('eval') + b'\x94h\x00h\x01\x93' + text(CODE) + b'\x85R.',
        text('collections\nOrderedDict\ncbuiltins') + text('eval') + b'\x93.',
        b'ccollections\nOrderedDict.__init__.__globals__\n.',
        text('collections') + text('OrderedDict.fromkeys') + b'\x93' + text('a') + b'\x85R.',
        # attributes of what is allowed
        text('numpy') + text('dtype') + b'\x93' + text('O') + b'\x85R.',
        text('numpy') + text('dtype') + b'\x93' + text('V8') + b'\x85R.',
        text('torch') + text('Tensor') + b'\x93}' + text('__setstate__') + b'Nsb.',
        text('other') + text('run_code') + b'\x93' + text('a') + b'\x85R.',
        text('torch.jit') + text('load') + b'\x93' + text('a') + b'\x85R.',
        text('torch.nn.modules.module') + text('os') + b'\x93.',
        b'(S' + CODE.encode() + b'\nibuiltins\neval\n.',
        b'\x82\x01.',
    ],
)
def test_a_pickle_written_by_hand_is_refused(pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as caught:
        load(in_a_file(b'\x80\x04' + pickled))
    assert not isinstance(caught.value, AssertionError) and not [*tmp_path.iterdir()]


def test_an_array_cannot_take_numbers_for_addresses():
    """NumPy's own dtype accepts a state that makes bytes into objects."""
    dtype = text('numpy') + text('dtype') + b'\x93' + text('i8') + b'\x85R'
    state = b'(K\x03' + text('|') + b'N' + text('a') + b'\x85N' + b'K\x08K\x01K\x3ftb'
    scalar = text('numpy._core.multiarray') + text('scalar') + b'\x93' + dtype + state
    found = load(in_a_file(b'\x80\x04' + scalar + b'C\x08' + bytes(8) + b'\x86R.'))
    assert found == 0 and found.dtype == np.int64
