"""Every pickle protocol, NumPy's numbers and objects of other packages, against what was saved; code never runs."""

import argparse
import builtins
import collections
import contextlib
import copyreg
import decimal
import functools
import importlib
import io
import os
import pathlib
import pickle
import struct
import subprocess
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
    return restricted_pickle.load(file)[0]


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
    assert found['ordered'] == content['ordered'] and [*found['ordered']] == ['b', 'a']
    others = content.keys() - {'views', 'types', 'parameter', 'ordered'}
    assert repr({name: found[name] for name in others}) == repr({name: content[name] for name in others})


@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
@pytest.mark.parametrize(('protocol', 'zipped'), FORMS)
def test_numpy_arrays_and_scalars_are_the_same_in_every_protocol(protocol, zipped, core):
    values = {
        'scalars': [np.float64(2.5), np.int64(-3), np.bool_(True), np.float16(0.5), np.str_('ab')],
        'arrays': [
            np.arange(6.0).reshape(2, 3), np.arange(6, dtype='>i4').reshape(2, 3).T, np.empty((0, 3)), np.array(4),
            np.array(['ab', 'c']), np.ones((2, 2), bool), np.array([1 + 2j]),
        ],
    }  # fmt: skip
    file = saved(values, protocol, zipped)
    if protocol == 2 and zipped:  # as written by another version of NumPy
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

    def mean(self):
        return self.values.mean()


@pytest.mark.parametrize(('protocol', 'zipped'), FORMS)
def test_objects_of_other_packages_become_dictionaries(protocol, zipped, monkeypatch):
    package = types.ModuleType('other_package')
    for each in (EasyDict, History, History.mean):
        monkeypatch.setattr(each, '__module__', 'other_package')
        setattr(package, each.__name__, each)
    monkeypatch.setitem(sys.modules, 'other_package', package)
    easy = EasyDict(lr=0.1)
    easy.depth = 3
    counts = collections.defaultdict(list, a=[1])
    content = {
        'w': torch.ones(2), 'easy': easy, 'history': History(), 'counts': counts, 'path': pathlib.Path('a/b'),
        'deque': collections.deque([1, 2], 5), 'methods': {'mean': History.mean},
        'optimizer': functools.partial(torch.optim.Adam, lr=1), 'decimal': decimal.Decimal(1), 'range': range(3),
        'random': np.random.default_rng(0),
        'namespace': argparse.Namespace(seed=1), 'set': {1}, 'types': [int, np.float32],
    }  # fmt: skip
    if zipped:  # the old format has the source code of modules
        content['loss'] = torch.nn.L1Loss()
    file = saved(content, protocol, zipped)
    monkeypatch.delitem(sys.modules, 'other_package')
    monkeypatch.setattr(importlib, 'import_module', lambda *_: pytest.fail('a package was imported'))
    found = load(file)
    assert found['w'].tolist() == [1, 1] and found['easy'] == {'lr': 0.1} and found['counts'] == {'a': [1]}
    values = {'history', 'path', 'namespace', 'loss', 'optimizer', 'decimal', 'range', 'random'}
    assert all(found[name] == {} for name in found.keys() & values)
    assert found['set'] == {1} and [*found['deque']] == [1, 2]


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


TRACE = 'trace.txt'
CODE = f'open({TRACE!r}, "w")'
CALLS = {
    'os.system': Call(os.system, f'echo > {TRACE}'),
    'a class': Call(subprocess.Popen, ['touch', TRACE]),
    'eval': Call(builtins.eval, CODE),
    'open': Call(builtins.open, TRACE, 'w'),
    'getattr': Call(getattr, 'a', 'upper'),
    'getattr of a class': Call(getattr, collections.OrderedDict, 'fromkeys'),
    'getattr of a stand-in': Call(getattr, pathlib.Path, 'touch'),
    'import': Call(importlib.import_module, 'this'),
    'path': Call(pathlib.Path.touch, pathlib.Path(TRACE)),
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
    """A checkpoint that consists of this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a/data.pkl', pickled)
        archive.writestr('a/data/0', bytes(8))
    file.seek(0)
    return file


def text(value):
    return pickle.SHORT_BINUNICODE + struct.pack('B', len(value)) + value.encode()


@pytest.mark.parametrize(
    'pickled',
    [
        text('posix') + text('system') + b'\x93.',
        text('builtins') + text('eval') + b'\x93' + text(CODE) + b'\x85R.',
        # names from the memo, or behind a line break
        text('builtins') + b'\x94' + text('eval') + b'\x94h\x00h\x01\x93' + text(CODE) + b'\x85R.',
        text('collections\nOrderedDict\ncbuiltins') + text('eval') + b'\x93.',
        # attributes of allowed objects
        b'ccollections\nOrderedDict.__init__.__globals__\n.',
        text('collections') + text('OrderedDict.fromkeys') + b'\x93' + text('a') + b'\x85R.',
        # arrays of objects or records
        text('numpy') + text('dtype') + b'\x93' + text('O') + b'\x85R.',
        text('numpy') + text('dtype') + b'\x93' + text('V8') + b'\x85R.',
        # functions of other packages
        text('other') + text('run_code') + b'\x93' + text('a') + b'\x85R.',
        text('torch.jit') + text('load') + b'\x93' + text('a') + b'\x85R.',
        text('torch.nn.modules.module') + text('os') + b'\x93.',
        # every opcode that calls or imports
        b'(S' + CODE.encode() + b'\nibuiltins\neval\n.',
        b'(cbuiltins\neval\nS' + CODE.encode() + b'\no.',
        b'cbuiltins\neval\n' + text(CODE) + b'\x85\x81.',
        b'cbuiltins\neval\n' + text(CODE) + b'\x85}\x92.',
        b'\x82\x01.',
        b'\x82\xf0.',
        b'\x83\xf0\x00.',
        b'\x84\xf0\x00\x00\x00.',
        # calls of objects that are not functions, and persistent objects that are not storages
        b'ctorch\nfloat32\n)R.',
        b'ctorch\nFloatStorage\n)R.',
        b'N)R.',
        b'Pcode\n.',
        b'(' + text('code') + b'NtQ.',
    ],
)
def test_a_pickle_written_by_hand_is_refused(pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ('os', 'system'))
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


@pytest.mark.parametrize(
    'known',
    [
        collections.OrderedDict, collections.Counter, collections.deque, set, dict, torch.Tensor, torch.Size,
        torch.device, torch.nn.Parameter, torch.nn.Linear, np.ndarray, np.dtype, argparse.Namespace,
        torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter, torch.float32, restricted_pickle.Data,
    ],
    ids=lambda each: getattr(each, '__name__', str(each)),
)  # fmt: skip
@pytest.mark.parametrize('slots', [True, False])
@pytest.mark.parametrize('made', [b'', b')R', b')\x81'], ids=['itself', 'called', 'new'])
def test_a_pickle_cannot_change_objects_of_the_process(known, slots, made):
    module, name = ('torch', 'float32') if known is torch.float32 else (known.__module__, known.__name__)
    state = text('items') + b'N' + text('__call__') + b'Nu'
    build = b'N}(' + state + b'\x86b' if slots else b'}(' + state + b'b'
    before = {**vars(known)} if hasattr(known, '__dict__') else None
    with contextlib.suppress(Exception):
        load(in_a_file(b'\x80\x02c' + f'{module}\n{name}\n'.encode() + made + build + b'.'))
    if before is not None:
        assert {**vars(known)} == before
    content = {'w': torch.nn.Parameter(torch.ones(2)), 'a': np.ones(2), 'n': collections.OrderedDict(a=1)}
    found = round_trip(content)
    assert found['w'].tolist() == found['a'].tolist() == [1, 1] and [*found['n'].items()] == [('a', 1)]


@pytest.mark.parametrize(
    ('storage', 'start', 'shape', 'strides'),
    [('0', 0, 9, 1), ('0', 8, 1, 1), ('0', 0, 2, 8), ('0', 2**62, 1, 1), ('0', 0, 2**62, 2), ('../0', 0, 1, 1)],
)
def test_a_tensor_cannot_reach_outside_its_storage(storage, start, shape, strides):
    function = b'ctorch._utils\n_rebuild_tensor_v2\n('
    where = b'(' + text('storage') + b'ctorch\nByteStorage\n' + text(storage) + text('cpu') + b'K\x08tQ'
    numbers = b''.join(pickle.dumps(each, 2)[2:-1] for each in (start, (shape,), (strides,), False, None))
    with pytest.raises((RuntimeError, KeyError)):
        load(in_a_file(b'\x80\x02' + function + where + numbers + b'tR.'))


@pytest.mark.parametrize(
    ('pickled', 'depth'),
    [
        (b']r\xff\xff\xff\x7f.', 0),  # a memo index of 2 billion
        (b']' * 10**5 + b'a' * (10**5 - 1) + b'.', 10**5 - 1),
    ],
    ids=['memo', 'nested'],
)
def test_memo_indices_and_deep_nesting_take_little_memory(pickled, depth):
    found = load(in_a_file(b'\x80\x02' + pickled))
    for _ in range(depth):
        (found,) = found
    assert found == []


@pytest.mark.parametrize(
    'pickled', [b'B\xff\xff\xff\x7f.', b'\x8e' + b'\xff' * 7 + b'\x7f.', b'\x96' + b'\xff' * 7 + b'\x7f.']
)
def test_lengths_beyond_the_end_are_refused(pickled):
    with pytest.raises((EOFError, MemoryError, OverflowError, IndexError, ValueError, pickle.UnpicklingError)):
        load(in_a_file(b'\x80\x05' + pickled))


@pytest.mark.parametrize('nest', [b'\x85', b'K\x01\x86', b'K\x01K\x02\x87', None])
def test_deep_tuples_as_keys_are_refused(nest):
    """Computing their hash would end the process."""
    nested = b'(' * 10**5 + b'K\x01' + b't' * 10**5 if nest is None else b'K\x01' + nest * 10**5
    with pytest.raises(pickle.UnpicklingError, match='nested too deeply'):
        load(in_a_file(b'\x80\x02}' + nested + b'K\x01s.'))
    assert round_trip({((1, (2,)),): 3}) == {((1, (2,)),): 3}
