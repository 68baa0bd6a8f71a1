"""Loads and saves network weights.

A checkpoint is a dictionary: `params` and, with averaged weights, `params_ema`, tensors by name; `network_g`, the
network's options; `iter`, the iteration; `tlc`, the setting it was validated with. A safetensors file holds the same,
what is not a tensor as JSON in its metadata. Published files have `params` alone; their options are inferred from the
tensors. In files of other programs the weights are found by the names of the tensors. Only tensors and plain values are
unpickled, so a downloaded file cannot run code.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from basicsr.utils import restricted_pickle
from basicsr.utils.archive import DAMAGES
from basicsr.utils.errors import CheckpointError, UnreadableError
from basicsr.utils.files import atomic_write
from basicsr.utils.text import listed

RESTORMER = ('patch_embed.proj.weight', 'output.weight')  # names that every Restormer has
PARAM_KEY_HELP = 'which weights of the file, as params or params_ema; default: the averaged ones if it has any'


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one network, from a file.

    `params` are on the CPU, in single precision at least (unless `keep_types`), by the names of the unwrapped network.
    `key` is their place in the file: 'params_ema', 'params', 'state_dict.generator.' (the prefix of their names is its
    end), …, or '' for a file of tensors alone.
    """

    path: Path
    params: dict[str, Tensor]
    key: str
    network_g: dict[str, Any] | None = None
    tlc: bool | int = False
    """TLC, or its window, as they were validated with; the default for inference."""
    iteration: int = 0

    def with_tlc(self, asked: bool | int | None) -> bool | int:
        """`asked`, or the file's setting if that is None."""
        return self.tlc if asked is None else asked

    def __str__(self) -> str:
        return f'{self.path} ({self.key})' if self.key else f'{self.path}'


# -------------------------------------------------------------- reading


def read_checkpoint(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Reads a dictionary written by torch.save or save_checkpoint, tensors to the CPU, and verifies the checksums of
    the former. Objects of other packages in it become dictionaries. Raises CheckpointError;
    UnreadableError if the operating system does not read it."""
    path = Path(path)
    try:
        with path.open('rb') as file:
            head = file.read(512)
            file.seek(0)
            if _is_safetensors(head):
                return _read_safetensors(file.read(), path)
            problem = _not_a_checkpoint(head, path)
            if problem is None and head.startswith(b'PK'):
                problem = _zip_problem(file)
            if problem is not None:
                raise CheckpointError(f'{path} {problem}')
            content = _unpickle(file, path)
    except FileNotFoundError:
        raise CheckpointError(f'{path}: no such file') from None
    except IsADirectoryError:
        raise CheckpointError(f'{path} is a folder, not a weights file') from None
    except OSError as error:
        raise UnreadableError(f'{path} cannot be read: {error.strerror or error}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not a dictionary of weights')
    return content


STATE_DICT = "save its tensors instead: torch.save({'params': net.state_dict()}, FILE)"
EXPORT = 'use the checkpoint that it was made from'

# First bytes, what such a file is, and what to do.
OTHER_FORMATS = (
    (rb'GGUF', 'a GGUF file', EXPORT),
    (rb'\x89HDF\r\n', 'an HDF5 file (Keras, MATLAB)', 'convert it with the program that wrote it'),
    (rb'\x08[\x03-\x14][\x12\x3a]', 'an ONNX model', EXPORT),
    (rb'ftrt|ptrt', 'a TensorRT engine', EXPORT),
    (
        rb'\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|.{257}ustar',
        'a compressed archive',
        'unpack it first',
    ),
    (rb'\x93NUMPY', 'a NumPy array', 'save a dictionary of tensors by name, with torch.save'),
    (rb'.{4}TFL3', 'a TensorFlow Lite model', EXPORT),
)


def _not_a_checkpoint(head: bytes, path: Path) -> str | None:
    """Describes the first bytes of a file that torch.save did not write."""
    if not head:
        return 'is empty: the download or the copy failed'
    text = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml')):
        return 'is a web page, not weights: the download failed'
    if text.startswith(b'version https://git-lfs'):
        return 'is a git-lfs pointer, not the weights themselves: run `git lfs pull`'
    for start, kind, advice in OTHER_FORMATS:
        if re.match(start, head, re.DOTALL):
            return f'is {kind}, not a PyTorch checkpoint: {advice}'
    if re.search(r'\.data-\d{5}-of-\d{5}$|\.ckpt(-\d+)?\.(index|meta)$', path.name):
        return 'is a part of a TensorFlow checkpoint: convert the checkpoint to PyTorch'
    if all(byte >= 32 or byte in b'\t\n\r\f' for byte in head):
        return 'is text, not weights'
    if not head.startswith((b'PK', b'\x80')):  # zip (the format since PyTorch 1.6) or pickle
        return 'is not a PyTorch checkpoint'
    return None


def _zip_problem(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition('/')[2] for name in archive.namelist()}
            if 'archive_format' in names or 'serialized_exported_program.json' in names:
                return f'is a program of torch.export, not a checkpoint; {STATE_DICT}'
            if 'constants.pkl' in names:  # torch.load would use its unrestricted TorchScript loader
                return f'is a TorchScript archive, not a checkpoint; {STATE_DICT}'
            if 'model.weights.h5' in names:
                return 'is a Keras model, not a PyTorch checkpoint: convert it with the program that wrote it'
            if names and all(name.endswith('.npy') for name in names):
                return 'is a file of NumPy arrays: save a dictionary of tensors by name, with torch.save'
            if 'data.pkl' not in names:
                return 'is a zip file without weights in it (if they are packed in it, unpack them first)'
            damaged = archive.testzip()
    except (*DAMAGES, ValueError):
        return 'is damaged or cut short: copy or download it again'
    finally:
        file.seek(0)
    return damaged and f'is damaged ({damaged} fails its checksum): copy or download it again'


def _unpickle(file: BinaryIO, path: Path) -> object:
    names: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of old formats
            source, names = restricted_pickle.as_protocol_2(file)
            content = restricted_pickle.load(source, names)
    except OSError:
        raise
    except Exception as error:  # depending on the bytes, nearly any type
        # Do not pass on torch's message, which advises loading without the restriction.
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if _has_model(names) and not (refused and not refused[1].startswith('torch.')):
            problem = f'holds a model object, which could run code; {STATE_DICT}'
        elif refused:
            problem = (
                f'is refused: it holds the Python object {_printable(refused[1])}, which could run code; allowed: '
                'tensors and plain values'
            )
        else:
            problem = (
                'is refused: it is damaged, cut short, or holds other things than tensors and plain values'
            )
        raise CheckpointError(f'{path} {problem}') from error
    if _has_model(names) and not _has_tensors(content):
        raise CheckpointError(f'{path} holds a model object instead of tensors; {STATE_DICT}')
    return content


def _has_model(names: Iterable[str]) -> bool:
    return any(name.startswith('torch.nn.modules.') for name in names)


def _is_safetensors(head: bytes) -> bool:
    """A length of 8 bytes, then JSON."""
    return head[6:9] == b'\0\0{'


def _read_safetensors(data: bytes, path: Path) -> dict[Any, Any]:
    try:
        params = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
        metadata = header.get('__metadata__', {})
        if 'network_g' not in metadata:  # of another program
            return params
        about = {name: json.loads(metadata[name]) for name in ('network_g', 'iter', 'tlc') if name in metadata}
    except Exception as error:  # of several types
        raise CheckpointError(f'{path} is damaged or cut short: copy or download it again') from error
    sets = {
        kind: {
            name.removeprefix(f'{kind}.'): each for name, each in params.items() if name.startswith(f'{kind}.')
        }
        for kind in ('params', 'params_ema')
    }
    return {**(sets if all(sets.values()) else {'params': params}), **about}


# -------------------------------------------------------------- finding the weights


@dataclass(frozen=True)
class _Place:
    """Tensors in a checkpoint: the keys of their dictionary, and the prefix of their names."""

    keys: tuple[str, ...]
    prefix: str

    def __str__(self) -> str:
        return '.'.join([*self.keys, *([self.prefix] if self.prefix else [])])

    def rank(self) -> tuple[bool, int, bool]:
        """Sorts averaged weights first, then those in fewer dictionaries and modules, then those of this project."""
        return (
            not re.search(_AVERAGED, str(self)),
            len(self.keys) + self.prefix.count('.'),
            self.keys not in (('params_ema',), ('params',)),
        )


_AVERAGED = r'(?i)(?<![a-z])ema|ema(?![a-z])|averag|avg(?![a-z])|shadow|(?<![a-z])swa(?![a-z])'
# Places that may have the network's names, but not its weights: a discriminator, the statistics of an optimiser.
_OTHERS = r'(?i)discrim|netd(?![a-z])|(?<![^._])d(?![^._])|optimi[sz]er|exp_avg|momentum_buffer|grads?(?![a-z])'
# Parts of a training program beside an unprefixed network.
_HELPERS = re.compile(
    r'(?i)(\w*loss\w*|criteri\w+|vgg\w*|lpips|metrics?|psnr|ssim|discriminator|net_?d|data_preprocessor|step_counter|'
    r'n_averaged)(\.|$)'
)
# torch.compile, FSDP and activation checkpointing, of the network or a part.
_WRAPPERS = re.compile(r'\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.')


def _places(content: dict[Any, Any], names: Collection[str]) -> list[_Place]:
    """The places with most of the network's tensors, and more than half of them; best first."""
    names = frozenset(names)
    depth = max((name.count('.') for name in names), default=0) + 1
    found: Counter[_Place] = Counter()
    for keys, entries in _dictionaries(content):
        for name in _tensors(entries):
            parts = name.rsplit('.', depth)
            for count in range(len(parts)):
                own = '.'.join(parts[count:])
                if own in names:
                    found[_Place(keys, name.removesuffix(own))] += 1
    found = Counter({place: count for place, count in found.items() if not re.search(_OTHERS, str(place))})
    most = max(len(names) // 2 + 1, *found.values(), 0)
    return sorted((place for place, count in found.items() if count == most), key=_Place.rank)


def _dictionaries(
    content: dict[Any, Any], keys: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """The dictionaries of a checkpoint, with their keys, down to three levels."""
    yield keys, content
    seen = set() if seen is None else seen
    for key, each in content.items() if len(keys) < 3 else ():
        # A damaged or malicious file may have a dictionary in itself.
        if isinstance(key, str) and isinstance(each, dict) and (not keys or id(each) not in seen):
            seen.add(id(each))
            yield from _dictionaries(each, (*keys, key), seen)


def _tensors(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors, and arrays as such, by name, without the wrappers of the network or its parts."""
    found = {}
    for name, each in entries.items():
        if isinstance(each, np.ndarray) and each.dtype.kind in 'biufc':
            each = torch.from_numpy(np.array(each, each.dtype.newbyteorder('='), subok=False))
        if isinstance(name, str) and isinstance(each, Tensor):
            found[_WRAPPERS.sub('', name)] = each.detach()
    return found


def _has_tensors(content: object) -> bool:
    return isinstance(content, dict) and any(_tensors(entries) for _, entries in _dictionaries(content))


def load_weights(
    path: str | os.PathLike[str],
    key: str | None = None,
    names: Collection[str] = RESTORMER,
    keep_types: bool = False,
) -> Weights:
    """Loads the weights of one network from a file of this or another program.

    A file with `network_g` has them under `params_ema` or `params`. In another one they are in the dictionary, and
    behind the prefix, with most of the `names`, and more than half; of several such places, the first by this order:
    averaged weights; the fewest levels and modules; `params`; the order in the file. Discriminators and the state of
    optimisers are left out. Where no place has such names, they are the tensors under the first of `params_ema`,
    `params` and `state_dict` that has any, else those of the file itself, without the prefixes of DataParallel and
    torch.compile.

    Args:
        key: where the weights are: a key of the file, as 'params', or a place as `Weights.key` gives it, or a part of
            that, as 'generator'.
        names: names of tensors by which the network is known.
        keep_types: keep numbers of half precision as they are; else they become single.

    Raises CheckpointError if the file is unreadable or has no tensors there.
    """
    path = Path(path)
    content = read_checkpoint(path)
    # A file that states its network has its names, too.
    found = [] if names == RESTORMER and content.get('network_g') is not None else _places(content, names)
    key, params = _selected(content, key, found, path)
    if found:
        params = {name: each for name, each in params.items() if name in names or not _HELPERS.match(name)}
    if uncommon := [name for name, tensor in params.items() if not _is_dense(tensor)]:
        raise CheckpointError(
            f'{path} has tensors of an uncommon kind {_where(key)}: {_listed(uncommon)}; allowed: dense ones, whose '
            'numbers are all in the file'
        )
    # In a file of tensors alone, these would be names of parameters.
    network_g, tlc, iteration = (
        content.get(name) if isinstance(content.get(key.split('.')[0]), dict) else None
        for name in ('network_g', 'tlc', 'iter')
    )
    if not isinstance(network_g, dict | None):
        kind = type(network_g).__name__
        raise CheckpointError(f'{path}: network_g is a {kind}; allowed: a dictionary of options')
    if not isinstance(tlc, bool | int | None):
        raise CheckpointError(
            f'{path}: tlc is a {type(tlc).__name__}; allowed: true, false, or a number of pixels'
        )
    if not keep_types:
        params = {
            name: tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
            for name, tensor in params.items()
        }
    return Weights(
        path=path,
        params=params,
        key=_printable(key),
        network_g=network_g,
        tlc=tlc or False,
        iteration=iteration if isinstance(iteration, int) else 0,
    )


def _selected(
    content: dict[Any, Any], key: str | None, found: list[_Place], path: Path
) -> tuple[str, dict[str, Tensor]]:
    """The place (a `Weights.key`) that a key asks for, or the best, and its tensors. Raises CheckpointError."""
    places = found
    if key is not None:
        bare = key.rstrip('.')
        asked = [place for place in found if str(place).rstrip('.') == bare]
        places = asked or [place for place in found if bare and f'.{bare}.' in f'.{place}.']
    if places:
        place, entries = places[0], content
        for each in place.keys:
            entries = entries[each]
        return str(place), {
            name.removeprefix(place.prefix): tensor
            for name, tensor in _tensors(entries).items()
            if name.startswith(place.prefix)
        }
    if key is None:
        present = [k for k in ('params_ema', 'params', 'state_dict') if isinstance(content.get(k), dict)]
        key = next((k for k in present if content[k]), '')
    elif key not in content:
        there = _listed(dict.fromkeys([*map(str, found), *content]))
        raise CheckpointError(f'{path} has nothing under {_printable(repr(key))}; it has: {there}')
    entries = content[key] if key else content
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f'{path} has no tensors {_where(key)}; it has: {_listed(content)}')
    if others := [name for name, each in entries.items() if not _tensors({name: each})]:
        raise CheckpointError(f'{path} has entries that are not tensors {_where(key)}: {_listed(others)}')
    return key, _unwrapped(_tensors(entries))


def _where(key: str) -> str:
    return f'under {_printable(repr(key))}' if key else 'at its top'


def _is_dense(tensor: Tensor) -> bool:
    """False for sparse, quantised and meta tensors, and for a small storage that is expanded to a large shape."""
    if tensor.layout != torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _unwrapped(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without wrappers and, if all names have it, `module.`."""
    bare = {_WRAPPERS.sub('', name): tensor for name, tensor in params.items()}
    while bare and all(name.startswith('module.') for name in bare):
        bare = {name.removeprefix('module.'): tensor for name, tensor in bare.items()}
    return bare


def _listed(names: Iterable[Any]) -> str:
    return listed(_printable(str(name)) for name in names) or 'nothing'


def _printable(text: str) -> str:
    """Text from a file, without control characters for the terminal."""
    return text if text.isprintable() else ascii(text)


# -------------------------------------------------------------- into a network, and to a file


def apply_weights(net: nn.Module, weights: Weights, strict: bool = True) -> list[str]:
    """Copies the weights into the network. Returns the differences between the two, one string per tensor.

    Raises CheckpointError on any difference, before anything is copied; if not `strict`, copies the tensors whose name
    and shape match, and raises only if none does.
    """
    wanted = net.state_dict()
    # Prefixes were removed from the file's names, but may belong to names of this network.
    bare = _unwrapped(wanted)
    names = dict(zip(bare, wanted, strict=True)) if len(bare) == len(wanted) else {}
    found = {names.get(name, name): tensor for name, tensor in weights.params.items()}
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    other_shape = {
        name: f'{name} is {_shape(found[name])} and should be {_shape(tensor)}'
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    }
    fitting = {name: found[name] for name in wanted if name in found and name not in other_shape}
    if (missing or unexpected or other_shape) and (strict or not fitting):
        groups = {
            'missing in the file': missing,
            'not in the network': unexpected,
            'of another shape': [*other_shape.values()],
        }
        differences = '; '.join(f'{kind}: {_listed(names)}' for kind, names in groups.items() if names)
        raise CheckpointError(f'{weights.path} does not fit this {type(net).__name__}: {differences}')
    net.load_state_dict(fitting, strict=False)
    return [
        *(f'{name} is missing in the file' for name in missing),
        *(f'{name} is not in the network' for name in unexpected),
        *other_shape.values(),
    ]


def _shape(tensor: Tensor) -> str:
    return '×'.join(str(size) for size in tensor.shape) or 'a number'


def save_checkpoint(
    path: str | os.PathLike[str],
    params: Mapping[str, Tensor],
    network_g: Mapping[str, Any] | None,
    iteration: int,
    params_ema: Mapping[str, Tensor] | None = None,
    tlc: bool | int = False,
) -> None:
    """Writes a file from which `load_weights` and `build_network` restore the network: of safetensors if the path ends
    so, else of torch.save. Atomic; raises OSError.

    `network_g` must be plain values (numbers, strings, lists, dictionaries); None if they are unknown. In a safetensors
    file with averaged weights, the names begin with `params.` and `params_ema.`.
    """
    sets = {'params': _portable(params)}
    about: dict[str, Any] = {'iter': iteration, 'tlc': tlc}
    if network_g is not None:
        about = {'network_g': dict(network_g), **about}
    if params_ema is not None:
        sets['params_ema'] = _portable(params_ema)
    if Path(path).suffix.lower() == '.safetensors':
        flat = (
            sets['params']
            if len(sets) == 1
            else {f'{kind}.{name}': tensor for kind, named in sets.items() for name, tensor in named.items()}
        )
        separate = {name: tensor.clone() for name, tensor in flat.items()}  # safetensors refuses shared memory
        metadata = {name: json.dumps(value) for name, value in about.items()}
        atomic_write(path, safetensors.torch.save(separate, metadata))
        return
    content = {'params': sets.pop('params'), **about, **sets}
    atomic_write(path, lambda file: torch.save(content, file))


def _portable(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _unwrapped(params).items()}
