"""The one loader of weights, for training, testing and the demo, and the one writer.

A file is a dictionary of `params` (and `params_ema`), tensors by name, of `network_g` and `iter`, the options that
rebuild the network and the iteration, and of `tlc`, what the network was validated with. The published files have
`params` only: the options are then read off the tensors. Nothing but tensors and plain values is ever unpickled: a
file from the internet runs no code.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from basicsr.utils.archive import DAMAGES
from basicsr.utils.errors import CheckpointError
from basicsr.utils.files import atomic_write

LISTED = 8  # names of each kind in a message


@dataclass(frozen=True, eq=False)
class Weights:
    """What a file says about one network.

    `params` are on the CPU, never below single precision, under the names the bare network uses; `key` is
    where in the file they were ('params_ema', 'params', …; '' if the file is nothing but tensors).
    """

    path: Path
    params: dict[str, Tensor]
    key: str
    network_g: dict[str, Any] | None = None
    iteration: int | None = None
    tlc: bool | int = False
    """What they were validated with, and are used with unless told otherwise: TLC, or the width of its windows."""

    def with_tlc(self, asked: bool | int | None) -> bool | int:
        """TLC as it was asked for; None: as the file says."""
        return self.tlc if asked is None else asked


def read_checkpoint(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Content of a file of torch.save, tensors on the CPU. Checksums are verified. Raises CheckpointError."""
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
        raise CheckpointError(f'{path}: there is no such weights file') from None
    except IsADirectoryError:
        raise CheckpointError(f'{path} is a folder, not a weights file') from None
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not a dictionary of weights')
    return content


def _not_a_checkpoint(head: bytes) -> str | None:
    """What the first bytes are, if torch.save did not write them."""
    if not head:
        return 'is empty: the download or the copy failed'
    text = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml')):
        return 'is a web page, not weights: the download failed'
    if text.startswith(b'version https://git-lfs'):
        return 'is a git-lfs pointer, not the weights themselves: run `git lfs pull`'
    if all(byte >= 32 or byte in b'\t\n\r\f' for byte in head):
        return 'is text, not weights'
    if not head.startswith((b'PK', b'\x80')):  # a zip file, and since PyTorch 1.6 that is the rule, or a pickle
        return 'is not a PyTorch checkpoint'
    return None


def _zip_problem(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition('/')[2] for name in archive.namelist()}
            if 'data.pkl' not in names:
                return 'is a zip file without weights in it (if they are packed in it, unpack them first)'
            if 'constants.pkl' in names:  # torch.load would hand it to another, unrestricted, loader
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
            warnings.simplefilter('ignore')  # about the age of a file; an error says all that matters
            return torch.load(file, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the bytes decide what fails, so it can be nearly anything
        # Nothing of torch's own advice is passed on: it is to load the file without the restriction.
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused:
            raise CheckpointError(
                f'{path} is refused: it holds the Python object {_clean(refused[1])}, which could run code; '
                'allowed: tensors and plain values'
            ) from error
        if isinstance(error, pickle.UnpicklingError) and 'unexpected EOF' not in str(error):
            raise CheckpointError(
                f'{path} is refused: it is damaged or holds other things than tensors and plain values'
            ) from error
        raise CheckpointError(f'{path} is damaged, cut short, or not written by torch.save') from error


def load_weights(path: str | os.PathLike[str], key: str | None = None) -> Weights:
    """Tensors under `key`; by default under params_ema if there is one, else params, state_dict, or the file
    itself. Prefixes that DataParallel and torch.compile put before the names are removed.

    Raises CheckpointError if the file is unreadable or has no tensors there.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if key is None:
        there = [k for k in ('params_ema', 'params', 'state_dict') if content.get(k) is not None]
        filled = [k for k in there if not isinstance(content[k], dict) or content[k]]
        key = next(iter([*filled, *there]), '')
    elif key not in content:
        raise CheckpointError(f'{path} has nothing under {key!r}; it has: {_listed(content)}')
    params = content[key] if key else content
    where = f'under {key!r}' if key else 'at its top'
    if not isinstance(params, dict) or not params:
        raise CheckpointError(f'{path} has no tensors {where}; it has: {_listed(content)}')
    others = [
        name for name, value in params.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others:
        raise CheckpointError(f'{path} has other things than tensors {where}: {_listed(others)}')

    uncommon = [name for name, tensor in params.items() if not _is_plain(tensor)]
    if uncommon:
        raise CheckpointError(
            f'{path} has tensors of an uncommon kind {where}: {_listed(uncommon)}; allowed: dense ones, whose '
            'numbers are all in the file'
        )

    network_g, iteration = (content.get('network_g'), content.get('iter')) if key else (None, None)
    if network_g is not None and not isinstance(network_g, dict):
        raise CheckpointError(
            f'{path}: network_g is a {type(network_g).__name__}; allowed: a dictionary of options'
        )
    tlc = content.get('tlc', False) if key else False
    if not isinstance(tlc, bool | int):
        raise CheckpointError(f'{path}: tlc is a {type(tlc).__name__}; allowed: yes, no, or a number of pixels')
    return Weights(
        path=path,
        params={
            name: tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
            for name, tensor in _bare_names(params).items()
        },
        key=key,
        network_g=network_g,
        iteration=iteration if isinstance(iteration, int) else None,
        tlc=tlc,
    )


def _is_plain(tensor: Tensor) -> bool:
    """Not sparse, quantised or without numbers, nor a few numbers under a shape of many."""
    if tensor.layout != torch.strided or tensor.device.type != 'cpu' or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _bare_names(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without `_orig_mod.` (torch.compile, of the network or of a part), and without `module.` where all names
    have it."""
    bare = {name.replace('_orig_mod.', ''): tensor for name, tensor in params.items()}
    while all(name.startswith('module.') for name in bare):
        bare = {name.removeprefix('module.'): tensor for name, tensor in bare.items()}
    return bare


def _listed(names: Any) -> str:
    names = [_clean(str(name)) for name in names]
    more = f' … and {len(names) - LISTED} more' if len(names) > LISTED else ''
    return (', '.join(names[:LISTED]) or 'nothing') + more


def _clean(text: str) -> str:
    """A file's own words, without control characters for the terminal."""
    return text if text.isprintable() else ascii(text)


def apply_weights(net: nn.Module, weights: Weights, strict: bool = True) -> list[str]:
    """Copies the weights into the network. Returns how they differ from what it wants, one string a tensor.

    Raises CheckpointError on any difference, before anything is copied; if not `strict`, copies those that fit
    in name and shape, and raises only if there are none.
    """
    wanted = net.state_dict()
    # By the names that the file has, from which prefixes were removed; a network may have such names itself.
    bare = _bare_names(wanted)
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
        groups = (
            ('missing in the file', missing),
            ('not in the network', unexpected),
            ('of another shape', other_shape.values()),
        )
        differences = '; '.join(f'{kind}: {_listed(names)}' for kind, names in groups if names)
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
    """Writes a file that `load_weights` reads and that `build_network` needs nothing else for. Atomic.

    `network_g` must be plain values (numbers, strings, lists, dictionaries). Raises OSError.
    """
    content = {'params': _portable(params), 'network_g': dict(network_g), 'iter': iteration, 'tlc': tlc}
    if params_ema is not None:
        content['params_ema'] = _portable(params_ema)
    atomic_write(path, lambda file: torch.save(content, file))


def _portable(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _bare_names(params).items()}
