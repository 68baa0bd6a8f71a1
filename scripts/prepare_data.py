"""Pack a folder of pairs into one file that training maps into memory, so that it decodes no images.

    python scripts/prepare_data.py --input_dir blurred --target_dir sharp --output my.pack --crop_size 512 --stride 256
    python scripts/prepare_data.py --target_dir clean --output my.pack
    python scripts/prepare_data.py --verify my.pack

In an option file, `type: Dataset_PackedImage` with `dataroot: my.pack` then replaces Dataset_PairedImage. A pack made
without --input_dir holds clean images alone, as `dataroot_gt: my.pack` of Dataset_GaussianDenoising. With
--crop_size and --stride, every training pair is one of the windows that the paper cuts its frames into; frames are
stored once, so overlapping crops take no extra space. Without them, every image is one training pair.

A pack is a folder: `pixels.bin` holds the raw pixels (height, width, channels), the degraded image of each pair before
the clean one; `index.json` holds their offsets and checksums. The folder appears once it is complete; if there are
images that cannot be used, all of them are named, and there is no pack. Exit status: 0 if the pack was made, or is
undamaged; 1 otherwise; 2 on wrong arguments; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('scripts.prepare_data'))

import argparse
import os
import zlib
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from basicsr.data.named_images import NamedImages
from basicsr.data.pack_format import (
    DTYPES,
    INDEX,
    PIXELS,
    PackIndex,
    StoredImage,
    StoredPair,
    open_pixels,
    read_index,
)
from basicsr.data.sources import open_sources
from basicsr.utils.cli import at_least, file_or_folder
from basicsr.utils.errors import DataError, InUseError, UsageError
from basicsr.utils.files import absolute, atomic_write, lock_file, made_folder, scratch_folder, sync_folder
from basicsr.utils.parallel import in_parallel


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Pack a folder of pairs for training, or check a pack.')
    p.add_argument(
        '--input_dir', type=file_or_folder, metavar='BLURRED',
        help='folder of the degraded images; default: none, to pack clean images',
    )  # fmt: skip
    p.add_argument('--target_dir', type=file_or_folder, metavar='SHARP', help='folder of the clean images')
    p.add_argument('--output', type=file_or_folder, metavar='NAME.pack', help='new pack')
    p.add_argument(
        '--crop_size', type=at_least(1), metavar='N',
        help='train on windows of N×N pixels (the paper: 512); default: on entire images',
    )  # fmt: skip
    p.add_argument('--stride', type=at_least(1), metavar='N', help='pixels between windows (the paper: 256)')
    p.add_argument(
        '--filename_tmpl', default='{}',
        help="name of a degraded image, without suffix; '{}' stands for the name of the clean one",
    )  # fmt: skip
    p.add_argument(
        '--channels', type=int, choices=(1, 3), default=3, help='3: RGB; 1: grey; default: %(default)s'
    )
    p.add_argument(
        '--bits', type=int, choices=(8,),
        help='8: keep the high byte of 16-bit images, for single-image defocus deblurring; default: keep 16 bits',
    )  # fmt: skip
    p.add_argument(
        '--workers', type=at_least(0), default=os.cpu_count() or 1, metavar='N',
        help='processes that decode images; 0: decode in this one; default: the number of processors',
    )  # fmt: skip
    p.add_argument(
        '--verify', type=file_or_folder, metavar='NAME.pack', help='check every byte of a pack; makes none'
    )
    return p


def main(args: argparse.Namespace) -> None:
    given = [f'--{name}' for name in ('input_dir', 'target_dir', 'output') if getattr(args, name)]
    if args.verify:
        if given:
            raise UsageError(f'--verify: found {", ".join(given)} beside it; allowed: --verify alone')
        return verify(args.verify)
    if not (args.target_dir and args.output):
        raise UsageError('--target_dir and --output are required, or --verify')
    if args.output.suffix != '.pack':
        raise UsageError(f'--output: found {args.output}; allowed: a name that ends in .pack')
    if (args.crop_size is None) != (args.stride is None):
        raise UsageError('found one of --crop_size and --stride; allowed: both or neither')
    pack(args)


def pack(args: argparse.Namespace) -> None:
    output = absolute(args.output)

    def refuse_existing() -> None:
        if os.path.lexists(output):
            raise UsageError(f'--output: {args.output} exists; allowed: a new name')

    refuse_existing()
    folders = {'lq': args.input_dir, 'gt': args.target_dir}
    dataset = NamedImages(
        open_sources(
            {kind: folder and str(absolute(folder)) for kind, folder in folders.items()}, {'type': 'disk'}
        ),
        filename_tmpl=args.filename_tmpl,
        channels=args.channels,
        bits=args.bits,
    )
    lock, scratch = (output.with_name(f'.{output.name}.{suffix}') for suffix in ('lock', 'tmp'))
    try:
        with made_folder(output.parent), lock_file(lock), scratch_folder(output.parent, scratch) as folder:
            refuse_existing()  # another process may have made it meanwhile
            with (folder / PIXELS).open('xb') as file:
                pairs = in_parallel(
                    DecodedPairs(dataset), args.workers, 'packing', lambda pair: write_pair(file, *pair)
                )
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            index = PackIndex(args.channels, args.crop_size, args.stride, size, tuple(pairs))
            atomic_write(folder / INDEX, index.encode())
            folder.rename(output)
        sync_folder(output.parent)
    except InUseError as error:
        raise InUseError(f'{args.output}: {error}') from None
    except OSError as error:
        raise OSError(f'{args.output}: cannot be written: {error.strerror or error}') from None
    print(f'{index.summary()}, in {args.output}')


class DecodedPairs:
    """`pairs[i]` is the name of a pair and, by kind, its images, each with the CRC-32 of its bytes; or a DataError."""

    def __init__(self, dataset: NamedImages) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, dict[str, tuple[np.ndarray, int]]] | DataError:
        images = {}
        try:
            pair = self.dataset.read(index)
        except DataError as error:
            return error
        for kind, image in pair.items():
            pixels = np.ascontiguousarray(image, DTYPES[image.dtype.name])
            images[kind] = pixels, zlib.crc32(pixels)
        return self.dataset.names[index], images


def write_pair(file: BinaryIO, name: str, images: dict[str, tuple[np.ndarray, int]]) -> StoredPair:
    """A clean image without a degraded one is stored once, as both."""
    stored = {}
    for kind, (pixels, crc32) in images.items():
        file.write(bytes(file.tell() % 2))  # 16-bit pixels start at even offsets
        stored[kind] = StoredImage(*pixels.shape[:2], pixels.dtype.name, file.tell(), crc32)
        file.write(pixels.data)
    return StoredPair(name, stored.get('lq', stored['gt']), stored['gt'])


def verify(root: Path) -> None:
    folder = absolute(root)
    index = read_index(folder)
    open_pixels(folder, index.size).close()
    damaged = 0
    with (folder / PIXELS).open('rb') as file:
        for pair in tqdm(index.pairs, desc='verifying', unit='pair'):
            images = {image: kind for kind, image in pair.images()}  # a clean image alone is both
            kinds = [kind for image, kind in images.items() if not is_intact(file, image, index.channels)]
            if kinds:
                damaged += 1
                tqdm.write(f'{root}:{pair.name}: is damaged: {", ".join(kinds)}', file=sys.stderr)
    if damaged:
        raise DataError(f'{root}: {damaged} of {len(index.pairs)} pairs are damaged')
    print(f'{root} is undamaged: {index.summary()}')


def is_intact(file: BinaryIO, image: StoredImage, channels: int) -> bool:
    file.seek(image.offset)
    try:
        pixels = file.read(image.height * image.width * channels * DTYPES[image.dtype].itemsize)
    except OSError:  # a failing disk
        return False
    return zlib.crc32(pixels) == image.crc32
