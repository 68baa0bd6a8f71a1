"""Packs a folder of pairs into one file that training maps into memory, so that it decodes nothing.

    python scripts/prepare_data.py --input_dir blurred --target_dir sharp --output my.pack --crop_size 512 --stride 256
    python scripts/prepare_data.py --verify my.pack

`type: Dataset_PackedImage` with `dataroot: my.pack` then takes the place of Dataset_PairedImage in an option
file. With --crop_size and --stride every training pair is a window in a frame, one of those that the paper cuts
its frames into, and the frames are stored once: crops that overlap take no room twice. Without them every image is
one training pair.

A pack is a folder: `pixels.bin`, the raw pixels (height, width, channels), for each pair the degraded image and then
the clean one; and `index.json`, which says where they are and what their checksums are. It appears whole or not at
all. Exit status: 0 if it was made, or is whole; 1 if not; 2 on a wrong argument, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

# Run as a script, Python looks for modules in scripts/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.utils.arguments import too_small
from basicsr.utils.console import print_any_name
from basicsr.utils.errors import InUseError
from basicsr.utils.files import absolute, atomic_write, lock_file, made_folder, scratch_folder, sync_folder
from basicsr.utils.signals import ending_cleanly

if TYPE_CHECKING:
    import numpy as np

    from basicsr.data.pack_format import StoredImage, StoredPair
    from basicsr.data.paired_image_dataset import Dataset_PairedImage


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Pack a folder of pairs for training, or check a pack.')
    p.add_argument('--input_dir', type=Path, metavar='BLURRED', help='folder of the degraded images')
    p.add_argument('--target_dir', type=Path, metavar='SHARP', help='folder of the clean images')
    p.add_argument('--output', type=Path, metavar='NAME.pack', help='the pack, which must not be there yet')
    p.add_argument(
        '--crop_size',
        type=int,
        metavar='N',
        help='train on windows of N×N pixels (the paper: 512); default: on whole images',
    )
    p.add_argument('--stride', type=int, metavar='N', help='pixels between windows (the paper: 256)')
    p.add_argument(
        '--filename_tmpl',
        default='{}',
        help="name of a degraded image, without suffix; '{}' stands for the name of the clean one",
    )
    p.add_argument(
        '--channels', type=int, choices=(1, 3), default=3, help='3: RGB; 1: grey; default: %(default)s'
    )
    p.add_argument(
        '--workers',
        type=int,
        default=os.cpu_count() or 1,
        metavar='N',
        help='processes that decode; 0: decode in this one; default: as many as there are processors',
    )
    p.add_argument('--verify', type=Path, metavar='NAME.pack', help='check every byte of a pack, and make none')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    if mistake := wrong(args):
        arguments.error(mistake)
    print_any_name()
    try:
        with ending_cleanly():
            return verify(args.verify) if args.verify else pack(args)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a process that decodes has died
        arguments.exit(1, f'{arguments.prog}: {" ".join(str(error).splitlines())}\n')
    except KeyboardInterrupt:
        return 130


def wrong(args: argparse.Namespace) -> str:
    """What is wrong with the arguments as a whole; '' if nothing is."""
    folders = {name: getattr(args, name) for name in ('input_dir', 'target_dir', 'output')}
    if args.verify:
        given = [f'--{name}' for name, value in folders.items() if value]
        return f'--verify: found {", ".join(given)} beside it; allowed: the pack alone' if given else ''
    if missing := [f'--{name}' for name, value in folders.items() if not value]:
        return f'found no {", ".join(missing)}; allowed: --input_dir, --target_dir and --output, or --verify'
    if args.output.suffix != '.pack':
        return f'--output: found {args.output}; allowed: a name that ends in .pack'
    if (args.crop_size is None) != (args.stride is None):
        return 'found one of --crop_size and --stride; allowed: both or neither'
    return too_small(args, crop_size=1, stride=1, workers=0)


# --- packing ------------------------------------------------------------------------------------------------


def pack(args: argparse.Namespace) -> int:
    from basicsr.data.pack_format import INDEX, PIXELS, PackIndex
    from basicsr.data.paired_image_dataset import Dataset_PairedImage

    output = absolute(args.output)

    def refuse_existing() -> None:
        if os.path.lexists(output):
            raise ValueError(f'--output: found {args.output}, which is there already; allowed: a new name')

    refuse_existing()
    dataset = Dataset_PairedImage(
        str(absolute(args.input_dir)),
        str(absolute(args.target_dir)),
        filename_tmpl=args.filename_tmpl,
        channels=args.channels,
    )

    def hidden(suffix: str) -> Path:
        return output.with_name(f'.{output.name}.{suffix}')

    try:
        with (
            made_folder(output.parent),
            lock_file(hidden('lock')),
            scratch_folder(output.parent, hidden('tmp')) as folder,
        ):
            refuse_existing()  # as another process may have made it meanwhile
            with (folder / PIXELS).open('xb') as file:
                pairs = write_all(file, dataset, args.workers)
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            index = PackIndex(args.channels, args.crop_size, args.stride, size, tuple(pairs))
            atomic_write(folder / INDEX, index.encode())
            folder.rename(output)
        sync_folder(output.parent)
    except InUseError as error:
        raise ValueError(f'{args.output}: {error}') from None
    except OSError as error:
        raise OSError(f'{args.output}: cannot be written: {error.strerror or error}') from None
    print(f'{index.summary()}, in {args.output}')
    return 0


def write_all(file: BinaryIO, dataset: Dataset_PairedImage, workers: int) -> list[StoredPair]:
    """Writes the pixels of every pair."""
    from basicsr.utils.parallel import in_parallel

    return in_parallel(Decoded(dataset), workers, 'packing', lambda pair: write_pair(file, *pair))


def write_pair(file: BinaryIO, name: str, images: dict[str, tuple[np.ndarray, int]]) -> StoredPair:
    from basicsr.data.pack_format import StoredPair

    return StoredPair(name, **{kind: write_image(file, *image) for kind, image in images.items()})


def write_image(file: BinaryIO, pixels: np.ndarray, crc32: int) -> StoredImage:
    from basicsr.data.pack_format import StoredImage

    file.write(bytes(file.tell() % 2))  # 16-bit pixels are read where the offset is even
    offset = file.tell()
    file.write(pixels.data)
    return StoredImage(*pixels.shape[:2], pixels.dtype.name, offset, crc32)


class Decoded:
    """The pairs of a dataset by name, each image with the checksum of its bytes."""

    def __init__(self, dataset: Dataset_PairedImage) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, dict[str, tuple[np.ndarray, int]]]:
        import numpy as np

        from basicsr.data.pack_format import DTYPES

        images = self.dataset.read(index)
        stored = {kind: np.ascontiguousarray(image, DTYPES[image.dtype.name]) for kind, image in images.items()}
        checked = {kind: (pixels, zlib.crc32(pixels)) for kind, pixels in stored.items()}
        return self.dataset.names[index], checked


# --- checking -----------------------------------------------------------------------------------------------


def verify(root: Path) -> int:
    from tqdm import tqdm

    from basicsr.data.pack_format import PIXELS, open_pixels, read_index

    folder = absolute(root)
    index = read_index(folder)
    open_pixels(folder, index.size).close()
    damaged = 0
    with (folder / PIXELS).open('rb') as file:
        for pair in tqdm(index.pairs, desc='verifying', unit='pair'):
            kinds = [kind for kind, image in pair.images() if not is_as_stored(file, image, index.channels)]
            if kinds:
                damaged += 1
                tqdm.write(f'{root}:{pair.name}: is damaged: {", ".join(kinds)}', file=sys.stderr)
    if damaged:
        raise ValueError(f'{root}: {damaged} of {len(index.pairs)} pairs are damaged')
    print(f'{root} is whole: {index.summary()}')
    return 0


def is_as_stored(file: BinaryIO, image: StoredImage, channels: int) -> bool:
    from basicsr.data.pack_format import DTYPES

    file.seek(image.offset)
    try:
        pixels = file.read(image.height * image.width * channels * DTYPES[image.dtype].itemsize)
    except OSError:  # a disk that fails
        return False
    return zlib.crc32(pixels) == image.crc32


if __name__ == '__main__':
    sys.exit(main())
