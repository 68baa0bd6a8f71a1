"""Reads what torch.save wrote, of any pickle protocol, without running code from the file.

PyTorch's restricted unpickler (`weights_only`) executes every pickle. This module widens what it can read:

- It knows protocol 2 alone: other protocols are translated to it, opcode by opcode.
- NumPy arrays and scalars become arrays and scalars of the same numbers.
- Objects of other packages' classes (a configuration, a metric's history) become dictionaries. Their packages are not
  imported, and nothing of them is called.

All other objects are refused.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
import struct
import sys
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

PROTOCOL_2 = b'\x80\x02'
_LOCK = threading.Lock()  # PyTorch's list of allowed names is global


def load(file: BinaryIO, names: Iterable[str]) -> object:
    """Reads the result of `as_protocol_2`, tensors to the CPU. Raises nearly any exception on damage, and on an object
    that is refused."""
    with _LOCK, _allowed(names):
        return torch.load(file, map_location='cpu', weights_only=True)


# -------------------------------------------------------------- protocols

_CONSTANT = re.compile(
    r'(SHORT_)?BINUNICODE8?|UNICODE|SHORT_BINSTRING|BYTEARRAY8|(SHORT_)?BINBYTES8?|(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT'
)
_REPLACED = {'EMPTY_SET': b']', 'ADDITEMS': b'e', 'FROZENSET': b't'}  # sets become lists and tuples
_LEGACY_PICKLES = 5  # before PyTorch 1.6: so many pickles, then the numbers


def as_protocol_2(file: BinaryIO) -> tuple[BinaryIO, list[str]]:
    """A file with the same content in protocol 2, and the dotted names of the objects in its pickles. Raises nearly any
    exception on damage."""
    head = file.read(2)
    if head == b'PK':
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.rpartition('/')[2] == 'data.pkl')
            pickled = archive.read(name)
            translation, names = _translate(io.BytesIO(pickled))
            if not pickled.startswith(PROTOCOL_2):
                return _with_member(archive, name, translation), names
        file.seek(0)
        return file, names
    file.seek(0)
    parts, all_names, end = [], [], 0
    with contextlib.suppress(Exception):  # not of torch.save, or damaged: PyTorch says so
        for _ in range(_LEGACY_PICKLES):
            translation, names = _translate(file)
            parts.append(translation)
            all_names += names
            end = file.tell()
    if head == PROTOCOL_2:
        file.seek(0)
        return file, all_names
    file.seek(end)
    return io.BytesIO(b''.join(parts) + file.read()), all_names


def _with_member(archive: zipfile.ZipFile, name: str, content: bytes) -> BinaryIO:
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, 'w') as target:
        for member in archive.infolist():
            target.writestr(member.filename, content if member.filename == name else archive.read(member))
    copy.seek(0)
    return copy


def _translate(file: BinaryIO) -> tuple[bytes, list[str]]:
    """Translates the next pickle of a file to protocol 2. Also returns the dotted names of its objects."""
    output: list[tuple[bytes, str | None]] = []  # opcodes; the string that one pushes
    # Strings are repeated instead of remembered, so that STACK_GLOBAL finds them.
    memo: dict[int, str | None] = {}
    names = []
    arg: Any
    for opcode, arg, _ in pickletools.genops(file):
        kind, text = opcode.name, None
        if kind in ('PROTO', 'FRAME'):
            continue
        if _CONSTANT.fullmatch(kind):
            code, text = _constant(arg), arg if isinstance(arg, str) else None
        elif kind == 'MEMOIZE' or kind.endswith('PUT'):
            index = len(memo) if arg is None else int(arg)
            memo[index] = output[-1][1]
            if memo[index] is not None:
                continue
            code = b'r' + struct.pack('<I', index)
        elif kind.endswith('GET'):
            text = memo[int(arg)]
            code = b'j' + struct.pack('<I', int(arg)) if text is None else _constant(text)
        elif kind in ('GLOBAL', 'STACK_GLOBAL'):
            module, name = arg.split(' ', 1) if kind == 'GLOBAL' else (output[-2][1], output[-1][1])
            if kind == 'STACK_GLOBAL':
                del output[-2:]
            names.append(f'{module}.{name}'.replace('__builtin__.', 'builtins.'))
            if '\n' in names[-1]:
                raise pickle.UnpicklingError('a name with a line break')
            code = f'c{module}\n{name}\n'.encode()
        elif arg is None:
            code = _REPLACED.get(kind) or opcode.code.encode('latin-1')
        else:
            raise pickle.UnpicklingError(f'opcode {kind}')
        output.append((code, text))
    return PROTOCOL_2 + b''.join(code for code, _ in output), names


def _constant(value: Any) -> bytes:
    value = bytes(value) if isinstance(value, bytearray) else value
    pickled = pickle.dumps(value, 2)
    return (pickletools.optimize(pickled) if isinstance(value, str | bytes) else pickled)[2:-1]


# -------------------------------------------------------------- allowed names

# Of the standard library, NumPy and PyTorch: classes whose objects are not needed, or are dictionaries.
_DATA = re.compile(
    r'argparse\.Namespace|builtins\.(bool|dict|float|list|object|slice|tuple)|collections\.defaultdict|'
    r'datetime\.(date|datetime|time|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction|'
    r'pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|types\.SimpleNamespace|typing\.Any|uuid\.UUID|'
    r'numpy\.(u?int\d*|float\d*|complex\d*|bool_?|str_|bytes_|\w+\.\w+DType)|'
    r'torch\.(nn\.modules|optim|torch_version)\.([\w.]+\.)?_*[A-Z]\w*'
)


def _is_data(name: str) -> bool:
    """Whether a stand-in may replace the object of this dotted name: a known one, or a class (not a function) of a
    package that has no part in how tensors are stored."""
    package, last = name.partition('.')[0], name.rpartition('.')[2]
    if package in sys.stdlib_module_names or package in ('numpy', 'torch'):
        return _DATA.fullmatch(name) is not None
    return last.lstrip('_')[:1].isupper()


@contextlib.contextmanager
def _allowed(names: Iterable[str]) -> Iterator[None]:
    """PyTorch's unpickler allows what it allows by itself, NumPy's data, and stand-ins for data among these names."""
    # PyTorch lets a pickle fill an OrderedDict with items and attributes, so it can stand for any object.
    stand_ins = [_stand_in(name, lambda *_args: OrderedDict()) for name in {*names} if _is_data(name)]
    before = [*torch.serialization.get_safe_globals()]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*_REBUILT, *stand_ins])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _stand_in(dotted: str, make: Callable[..., object]) -> type:
    """A class of this dotted name whose call is `make(*args)`."""
    module, _, name = dotted.rpartition('.')
    return type(name, (), {'__module__': module, '__new__': lambda _cls, *args: make(*args)})


# NumPy's own functions would trust the file: its dtypes can be made to take numbers for addresses.


class _Dtype:
    """The type of numbers or of text; not of objects or records."""

    def __init__(self, kind: str, *_: object) -> None:
        if not re.fullmatch(r'[?]|[biufcSU]\d+', kind):
            raise pickle.UnpicklingError(f'dtype {kind}')
        self.numbers = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numbers = self.numbers.newbyteorder('>' if state[1] == '>' else '<')


class _Array(np.ndarray):
    def __new__(cls, *_: object) -> _Array:
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        array = _from_buffer(data, dtype, shape, 'F' if is_fortran else 'C')
        rebuilt: Any = (1, array.shape, array.dtype, False, array.tobytes())
        super().__setstate__(rebuilt)


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any = 'C') -> np.ndarray:
    numbers = np.frombuffer(data, dtype.numbers) if data else np.empty(0, dtype.numbers)
    return numbers.reshape(shape, order=order).copy()


def _scalar(dtype: _Dtype, data: bytes) -> object:
    return _from_buffer(data, dtype, ())[()]


for _class, _name in ((_Dtype, 'dtype'), (_Array, 'ndarray')):
    _class.__module__, _class.__name__, _class.__qualname__ = 'numpy', _name, _name

_REBUILT = [
    _Dtype,
    _Array,
    _stand_in('collections.deque', lambda *_args: []),
    # Newer versions of PyTorch allow some of these. Protocol 2 writes bytes so.
    _stand_in('_codecs.encode', lambda text, _codec: text.encode('latin-1')),
    *(
        _stand_in(f'builtins.{kind.__name__}', kind)
        for kind in (bytearray, bytes, complex, frozenset, int, set, str)
    ),
    *(
        _stand_in(f'numpy.{core}.{name}', make)
        for core in ('core', '_core')
        for name, make in (
            ('multiarray.scalar', _scalar),
            ('multiarray._reconstruct', _Array),
            ('numeric._frombuffer', _from_buffer),
        )
    ),
]
