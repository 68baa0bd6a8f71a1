"""Reads what torch.save wrote, of any pickle protocol, without running code from the file.

As "Restricting Globals" in the documentation of Python's pickle says, nothing is imported: a pickle gets only the
objects that this module allows. Some are replaced:

- a Parameter by its tensor;
- a tensor that is not dense (sparse, quantised, …) by an empty one on the device `meta`;
- an OrderedDict, or an object of another package (a configuration, a module), by a `Data`, a dictionary of its items.

torch.load(weights_only=True) reads protocol 2 only. With another `pickle_module` it is not safe: it hands TorchScript
and tar files to loaders without restriction, and can write files.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor


class RefusedError(pickle.UnpicklingError):
    """The file holds an object that is not data; the message is its dotted name."""


class Data(dict[Any, Any]):
    """Keeps the items of an object, and ignores what else a pickle puts into it."""

    def _ignore(self, *_: object) -> None: ...

    __setstate__ = append = extend = add = _ignore


# -------------------------------------------------------------- the format of torch.save


def load(file: BinaryIO) -> tuple[object, list[str]]:
    """The object in a file, tensors on the CPU, and the dotted names of the classes and functions in its pickle.

    Raises RefusedError, and nearly any other exception on damage.
    """
    is_zip = file.read(2) == b'PK'
    file.seek(0)
    return _load_zip(file) if is_zip else _load_legacy(file)


def _load_zip(file: BinaryIO) -> tuple[object, list[str]]:
    with zipfile.ZipFile(file) as archive:
        pickled = next(name for name in archive.namelist() if name.rpartition('/')[2] == 'data.pkl')
        folder = pickled.removesuffix('data.pkl')
        if f'{folder}byteorder' in archive.namelist() and archive.read(f'{folder}byteorder') != b'little':
            raise pickle.UnpicklingError('the numbers are big-endian')
        storages: dict[object, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, _location: str, _count: int) -> Tensor:
            if key not in storages:
                info = archive.getinfo(f'{folder}data/{key}')
                storages[key] = torch.empty(info.file_size, dtype=torch.uint8)
                with archive.open(info) as member:
                    _fill(storages[key], member)
            return storages[key].view(dtype)

        unpickler = _Unpickler(io.BytesIO(archive.read(pickled)), storage)
        return unpickler.load(), unpickler.names


def _load_legacy(file: BinaryIO) -> tuple[object, list[str]]:
    """The format before PyTorch 1.6: pickles of two numbers, of facts about the computer, of the object, and of the
    keys of its storages; then the storages."""
    size = file.seek(0, 2)
    file.seek(0)
    storages: dict[object, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, _location: str, count: int, view: object) -> Tensor:
        if view is not None or count * dtype.itemsize > size:
            raise pickle.UnpicklingError('a storage in a storage, or larger than the file')
        if key not in storages:
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key].view(dtype)

    unpicklers = [_Unpickler(file, storage) for _ in range(5)]
    magic, version, computer, content, keys = (each.load() for each in unpicklers)
    if (magic, version, {*keys}) != (0x1950A86A20F9469CFC6C, 1001, {*storages}) or not computer[
        'little_endian'
    ]:
        raise pickle.UnpicklingError('not of torch.save, or the numbers are big-endian')
    for key in keys:
        (count,) = struct.unpack('<q', file.read(8))
        if count != len(storages[key]):
            raise pickle.UnpicklingError('a storage has another size than its tensors')
        _fill(storages[key].view(torch.uint8), file)
    return content, [name for each in unpicklers for name in each.names]


def _fill(storage: Tensor, file: Any) -> None:
    if file.readinto(storage.numpy()) != len(storage):
        raise EOFError


# -------------------------------------------------------------- the pickle


def _limited(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    """Limits how deep tuples nest: Python hashes keys by recursion in C, and a deep tuple would end the process."""

    def load_limited(self: Any) -> None:
        load_tuple(self)
        made = self.stack[-1]
        inner = [self.depths.get(id(each), (1, each))[0] for each in made if type(each) is tuple]
        if inner:
            self.depths[id(made)] = 1 + max(inner), made  # kept, so that no other tuple gets its id
            if max(inner) > 100:
                raise pickle.UnpicklingError('tuples are nested too deeply')

    return load_limited


class _Unpickler(pickle._Unpickler):  # in Python: the one in C allocates memory up to any memo index
    proto: int
    dispatch: ClassVar = pickle._Unpickler.dispatch | {
        opcode: _limited(pickle._Unpickler.dispatch[opcode])
        for opcode in pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3
    }

    def __init__(self, file: Any, storage: Callable[..., Tensor]) -> None:
        super().__init__(file, encoding='latin-1')
        self.storage = storage
        self.depths: dict[int, tuple[int, Any]] = {}
        self.names: list[str] = []

    def persistent_load(self, pid: Any) -> Any:
        kind, *details = pid
        return details[0] if kind == 'module' else self.storage(*details)  # a class with its source code

    def find_class(self, module: str, name: str) -> Any:
        """Returns only new objects, and objects that Python protects from changes: a pickle can set attributes of all
        that it gets."""
        if self.proto < 3:  # with the names of Python 2, as 'commands.Popen' for that of subprocess
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        dotted = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')
        self.names.append(dotted)
        if module.startswith('torch') and name.endswith('Storage'):
            return torch.uint8 if name == 'UntypedStorage' else torch.serialization.StorageType(name).dtype
        if dotted in _TYPES:
            return _TYPES[dotted]
        if module == 'torch' and isinstance(value := vars(torch).get(name), torch.dtype | torch.qscheme):
            return value
        if function := _FUNCTIONS.get(dotted):
            return lambda *args: function(*args)
        if _is_data(module, dotted):
            return _stand_in(module, name)
        raise RefusedError(dotted)


def _stand_in(module: str, name: str) -> type[Data]:
    return type(name, (Data,), {'__module__': module, '__new__': lambda _cls, *_args, **_options: Data()})


def _attribute(owner: Any, name: str) -> type[Data]:
    """A stand-in for a method of another package's class: protocols 2 and 3 write `getattr(Class, 'method')`."""
    if isinstance(owner, type) and issubclass(owner, Data):
        dotted = f'{owner.__module__}.{owner.__name__}.{name}'
        if _is_data(owner.__module__, dotted):
            return _stand_in(owner.__module__, f'{owner.__name__}.{name}')
    raise RefusedError('builtins.getattr')


def _is_data(module: str, name: str) -> bool:
    """Whether a `Data` may replace the object: one of `_CLASSES`, or a class of a package that does not store tensors,
    or a method of such a class."""
    package = name.partition('.')[0]
    if package in sys.stdlib_module_names or package in ('numpy', 'torch'):
        return _CLASSES.fullmatch(name) is not None
    return name.removeprefix(f'{module}.').lstrip('_')[:1].isupper()


_CLASSES = re.compile(
    r'builtins\.(bool|dict|float|int|list|object|range|slice|str|tuple)|collections\.defaultdict|'
    r'argparse\.Namespace|types\.SimpleNamespace|typing\.Any|datetime\.[a-z]+|pathlib\.(_local\.)?\w*Path|'
    r'decimal\.Decimal|fractions\.Fraction|functools\.partial|time\.struct_time|uuid\.(UUID|SafeUUID)|'
    r'numpy\.(ndarray|bool_?|str_|bytes_|(u?int|float|complex)\d*)|numpy\.random\.\w+\.\w+|'
    r'torch\.(Tensor|(nn|optim|torch_version)\.([\w.]+\.)?_*[A-Z]\w*)'
)
_TYPES = {
    **{f'builtins.{each.__name__}': each for each in (bytearray, bytes, complex, frozenset, set)},
    'collections.deque': deque,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
}


def _tensor(storage: Tensor, start: int, shape: Any, strides: Any, _requires_grad: bool, _hooks: Any) -> Tensor:
    return storage.as_strided(shape, strides, storage.storage_offset() + start)  # checks the bounds


def _uncommon(*_: object) -> Tensor:
    return torch.empty(0, device='meta')


# NumPy's own dtypes would trust the file, which could make them use numbers as addresses.


class _Dtype:
    """The type of numbers or of text; not of objects or records."""

    def __init__(self, kind: str, *_: object) -> None:
        if not re.fullmatch(r'[?]|[biufcSU]\d+', kind):
            raise pickle.UnpicklingError(f'dtype {kind}')
        self.numbers = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numbers = self.numbers.newbyteorder('>' if state[1] == '>' else '<')


class _Array(np.ndarray):
    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.numbers, is_fortran, data))


def _from_buffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any = 'C') -> np.ndarray:
    return np.ndarray(shape, dtype.numbers, data, order=order)


_FUNCTIONS: dict[str, Callable[..., object]] = {
    'builtins.getattr': _attribute,
    '_codecs.encode': lambda text, _codec: text.encode('latin-1'),  # how protocol 2 writes bytes
    'collections.Counter': Counter,
    'collections.OrderedDict': Data,
    'numpy.core.multiarray._reconstruct': lambda *_: _Array(0),
    'numpy.core.multiarray.scalar': lambda dtype, data: _from_buffer(data, dtype, ())[()],
    'numpy.core.numeric._frombuffer': _from_buffer,
    'numpy.dtype': _Dtype,
    'torch._tensor._rebuild_from_type_v2': lambda function, _type, args, _state: function(*args),
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': lambda storage, *args: _tensor(storage.view(args[-1]), *args[:-1]),
    'torch._utils._rebuild_meta_tensor_no_storage': _uncommon,
    'torch._utils._rebuild_nested_tensor': _uncommon,
    'torch._utils._rebuild_qtensor': _uncommon,
    'torch._utils._rebuild_sparse_tensor': _uncommon,
    'torch.serialization._get_layout': str,
}
