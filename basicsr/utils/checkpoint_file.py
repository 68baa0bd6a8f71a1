"""Reads checkpoints: files of torch.save and of safetensors. Only tensors and plain values are unpickled, so a
downloaded file cannot run code."""

from __future__ import annotations

import errno
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch

from basicsr.utils import restricted_pickle
from basicsr.utils.archive import DAMAGES
from basicsr.utils.errors import CheckpointError, UnreadableError
from basicsr.utils.find_weights import dictionaries, tensors_in
from basicsr.utils.text import printable

STATE_DICT = "save its tensors instead: torch.save({'params': net.state_dict()}, FILE)"
ARCHIVES = rb'\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|.{257}ustar'  # gzip, 7z, rar, bzip2, xz, zstd, tar
ONNX = rb'\x08[\x03-\x14][\x12\x3a]'


def read_checkpoint(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Reads a dictionary of torch.save or safetensors, tensors to the CPU. Verifies the checksums of the former.

    Objects of other packages in it become dictionaries. Raises CheckpointError; UnreadableError if the operating system
    cannot read it.
    """
    path = Path(path)
    try:
        with path.open('rb') as file:
            head = file.read(512)
            file.seek(0)
            if _is_safetensors(head):
                return _read_safetensors(file.read(), path)
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
    if re.match(ARCHIVES, head, re.DOTALL):
        return 'is a compressed archive: unpack it first'
    if re.match(ONNX, head):
        return 'is an ONNX model: use the checkpoint that it was made from'
    if all(byte >= 32 or byte in b'\t\n\r\f' for byte in head):
        return 'is text, not weights'
    if not head.startswith((b'PK', b'\x80')):  # zip (the format since PyTorch 1.6) or pickle
        return 'is not a PyTorch checkpoint'
    return None


def _zip_problem(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition('/')[2] for name in archive.namelist()}
            if names & {'constants.pkl', 'archive_format', 'serialized_exported_program.json'}:
                return f'is a program of TorchScript or torch.export, not a checkpoint; {STATE_DICT}'
            if 'data.pkl' not in names:
                return 'is a zip file without weights in it (if they are packed in it, unpack them first)'
            damaged = archive.testzip()
    except (*DAMAGES, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a damaged offset, before the start
            raise
        return 'is damaged or cut short: copy or download it again'
    finally:
        file.seek(0)
    return damaged and f'is damaged ({damaged} fails its checksum): copy or download it again'


def _unpickle(file: BinaryIO, path: Path) -> object:
    try:
        content, names = restricted_pickle.load(file)
    except OSError:
        raise
    except restricted_pickle.RefusedError as error:
        raise CheckpointError(
            f'{path} is refused: it holds the Python object {printable(str(error))}, which could run code; '
            f'{STATE_DICT}'
        ) from error
    except Exception as error:  # depending on the bytes, nearly any type
        raise CheckpointError(
            f'{path} is refused: it is damaged, cut short, or holds other things than tensors and plain values'
        ) from error
    is_model = any(name.startswith('torch.nn.modules.') for name in names)
    if is_model and not (
        isinstance(content, dict) and any(tensors_in(entries) for _, entries in dictionaries(content))
    ):
        raise CheckpointError(f'{path} holds a model object instead of tensors; {STATE_DICT}')
    return content


def _is_safetensors(head: bytes) -> bool:
    """Whether a length of 8 bytes comes first, then JSON."""
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
