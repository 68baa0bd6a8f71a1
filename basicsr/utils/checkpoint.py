"""Loads and saves network weights.

A checkpoint is a dictionary: `params` and, with averaged weights, `params_ema`, tensors by name; `network_g`, the
network's options; `iter`, the iteration; `tlc`, the setting it was validated with. Published files have `params` alone;
their options are inferred from the tensors. Only tensors and plain values are unpickled, so a downloaded file cannot
run code.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from basicsr.utils.archive import DAMAGES
from basicsr.utils.errors import CheckpointError, UnreadableError
from basicsr.utils.files import atomic_write
from basicsr.utils.text import listed


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one network, from a file.

    `params` are on the CPU, in single precision at least, by the names of the unwrapped network. `key` is their place
    in the file: 'params_ema', 'params', …, or '' for a file of tensors alone.
    """

    path: Path
    params: dict[str, Tensor]
    key: str
    network_g: dict[str, Any] | None = None
    tlc: bool | int = False
    """TLC, or its window, as they were validated with; the default for inference."""

    def with_tlc(self, asked: bool | int | None) -> bool | int:
        """`asked`, or the file's setting if that is None."""
        return self.tlc if asked is None else asked


def read_checkpoint(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Reads a dictionary written by torch.save, tensors to the CPU, and verifies checksums. Raises CheckpointError;
    UnreadableError if the operating system does not read it."""
    path = Path(path)
    try:
        with path.open('rb') as file:
            head = file.read(512)
            file.seek(0)
            problem = _not_a_checkpoint(head)
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


def _not_a_checkpoint(head: bytes) -> str | None:
    """Describes the first bytes of a file that torch.save did not write."""
    if not head:
        return 'is empty: the download or the copy failed'
    text = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml')):
        return 'is a web page, not weights: the download failed'
    if text.startswith(b'version https://git-lfs'):
        return 'is a git-lfs pointer, not the weights themselves: run `git lfs pull`'
    if all(byte >= 32 or byte in b'\t\n\r\f' for byte in head):
        return 'is text, not weights'
    if not head.startswith((b'PK', b'\x80')):  # zip (the format since PyTorch 1.6) or pickle
        return 'is not a PyTorch checkpoint'
    return None


def _zip_problem(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition('/')[2] for name in archive.namelist()}
            if 'data.pkl' not in names:
                return 'is a zip file without weights in it (if they are packed in it, unpack them first)'
            if 'constants.pkl' in names:  # torch.load would use its unrestricted TorchScript loader
                return 'is a TorchScript archive, not a checkpoint'
            damaged = archive.testzip()
    except (*DAMAGES, ValueError):
        return 'is damaged or cut short: copy or download it again'
    finally:
        file.seek(0)
    return damaged and f'is damaged ({damaged} fails its checksum): copy or download it again'


def _unpickle(file: BinaryIO, path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of old formats
            return torch.load(file, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # depending on the bytes, nearly any type
        # Do not pass on torch's message, which advises loading without the restriction.
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused:
            problem = (
                f'is refused: it holds the Python object {_printable(refused[1])}, which could run code; allowed: '
                'tensors and plain values'
            )
        else:
            problem = (
                'is refused: it is damaged, cut short, or holds other things than tensors and plain values'
            )
        raise CheckpointError(f'{path} {problem}') from error


def load_weights(path: str | os.PathLike[str], key: str | None = None) -> Weights:
    """Loads the tensors under `key`; by default under the first of params_ema, params and state_dict that has any, else
    the file itself. Removes the prefixes of DataParallel and torch.compile.

    Raises CheckpointError if the file is unreadable or has no tensors there.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if key is None:
        present = [k for k in ('params_ema', 'params', 'state_dict') if isinstance(content.get(k), dict)]
        key = next((k for k in present if content[k]), '')
    elif key not in content:
        raise CheckpointError(f'{path} has nothing under {key!r}; it has: {_listed(content)}')
    params = content[key] if key else content
    place = f'under {key!r}' if key else 'at its top'
    if not isinstance(params, dict) or not params:
        raise CheckpointError(f'{path} has no tensors {place}; it has: {_listed(content)}')
    others = [
        name for name, each in params.items() if not isinstance(name, str) or not isinstance(each, Tensor)
    ]
    if others:
        raise CheckpointError(f'{path} has entries that are not tensors {place}: {_listed(others)}')
    if uncommon := [name for name, tensor in params.items() if not _is_dense(tensor)]:
        raise CheckpointError(
            f'{path} has tensors of an uncommon kind {place}: {_listed(uncommon)}; allowed: dense ones, whose '
            'numbers are all in the file'
        )
    # In a file of tensors alone, these would be names of parameters.
    network_g, tlc = (content.get(name) if key else None for name in ('network_g', 'tlc'))
    if not isinstance(network_g, dict | None):
        kind = type(network_g).__name__
        raise CheckpointError(f'{path}: network_g is a {kind}; allowed: a dictionary of options')
    if not isinstance(tlc, bool | int | None):
        raise CheckpointError(
            f'{path}: tlc is a {type(tlc).__name__}; allowed: true, false, or a number of pixels'
        )
    return Weights(
        path=path,
        params={
            name: tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
            for name, tensor in _unwrapped(params).items()
        },
        key=key,
        network_g=network_g,
        tlc=tlc or False,
    )


def _is_dense(tensor: Tensor) -> bool:
    """False for sparse, quantised and meta tensors, and for a small storage that is expanded to a large shape."""
    if tensor.layout != torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _unwrapped(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without `_orig_mod.` (torch.compile, of the network or a part) and, if all names have it, `module.`."""
    bare = {name.replace('_orig_mod.', ''): tensor for name, tensor in params.items()}
    while all(name.startswith('module.') for name in bare):
        bare = {name.removeprefix('module.'): tensor for name, tensor in bare.items()}
    return bare


def _listed(names: Iterable[Any]) -> str:
    return listed(_printable(str(name)) for name in names) or 'nothing'


def _printable(text: str) -> str:
    """Text from a file, without control characters for the terminal."""
    return text if text.isprintable() else ascii(text)


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
    network_g: Mapping[str, Any],
    iteration: int,
    params_ema: Mapping[str, Tensor] | None = None,
    tlc: bool | int = False,
) -> None:
    """Writes a file from which `load_weights` and `build_network` restore the network. Atomic; raises OSError.

    `network_g` must be plain values (numbers, strings, lists, dictionaries).
    """
    content = {'params': _portable(params), 'network_g': dict(network_g), 'iter': iteration, 'tlc': tlc}
    if params_ema is not None:
        content['params_ema'] = _portable(params_ema)
    atomic_write(path, lambda file: torch.save(content, file))


def _portable(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _unwrapped(params).items()}
