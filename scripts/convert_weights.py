"""Convert weights of this or another program to a .pth or .safetensors file with one set of weights.

    python scripts/convert_weights.py mmagic_restormer.pth deblur.pth
    python scripts/convert_weights.py net_g_300000.pth deblur.safetensors --param_key params

The tensors keep their numbers and types. The file also has the network's options, if the tensors are a Restormer's or
the input states them, the iteration, and whether the weights were validated with TLC.

Exit status: 0 if the file was written, 1 if it cannot be written, 2 on wrong arguments, 130 after Ctrl-C, 143 after
SIGTERM. An existing file is replaced once the new one is complete.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('scripts.convert_weights'))

import argparse

from basicsr.archs.from_weights import network_options
from basicsr.utils.checkpoint import Weights, load_weights, save_checkpoint
from basicsr.utils.cli import add_param_key, file_or_folder, usage_errors
from basicsr.utils.errors import CheckpointError, UsageError

SUFFIXES = '.pth', '.safetensors'


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description='Convert weights to a .pth or .safetensors file with one set of them.'
    )
    p.add_argument(
        'input', type=file_or_folder, metavar='INPUT', help='a checkpoint, of this or another program'
    )
    p.add_argument(
        'output',
        type=file_or_folder,
        metavar='OUTPUT',
        help='a .pth or .safetensors file, replaced if it exists',
    )
    add_param_key(p)
    return p


def main(args: argparse.Namespace) -> None:
    source, output = args.input, args.output
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f'OUTPUT: found {output}; allowed: a name that ends in {" or ".join(SUFFIXES)}')
    with usage_errors():
        weights = load_weights(source, args.param_key)
    if output.is_dir() or (output.exists() and output.samefile(source)):
        raise UsageError(f'OUTPUT: found {output}, a folder or the input itself; allowed: another file')
    options = known_options(weights)
    try:
        save_checkpoint(output, weights.params, options, weights.iteration, tlc=weights.tlc)
    except OSError as error:
        raise CheckpointError(f'{output} cannot be written: {error.strerror or error}') from None
    print(f'weights: {weights}', f'{output}: {output.stat().st_size / 1e6:.1f} MB', sep='\n')
    if options is None:
        print('without options of the network: the tensors are not those of a Restormer')


def known_options(weights: Weights) -> dict[str, object] | None:
    try:
        return network_options(weights)
    except CheckpointError:
        return None
