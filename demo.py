"""Restores the images of a folder, or one image.

    python demo.py --task motion_deblurring --input_dir my_photos --result_dir sharp_photos

Results are PNG files, <result_dir>/<task>/<name>.png. Exit status: 0 if every image was restored, 1 if some
were not (each is named), 2 on a wrong argument, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from basicsr.utils.arguments import add_tlc
from basicsr.utils.console import print_any_name
from basicsr.utils.files import ROOT, expanded
from basicsr.utils.signals import ending_cleanly


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Restore the images of a folder, or one image.')
    p.add_argument(
        '--task',
        default='motion_deblurring',
        help='what is wrong with the images; so far there is motion_deblurring, the default (any letter case)',
    )
    p.add_argument(
        '--input_dir',
        type=expanded,
        default=ROOT / 'demo' / 'degraded',
        metavar='FILE_OR_FOLDER',
        help='an image, or a folder of images (png, jpg, bmp, tif, webp; folders in it are not entered); '
        'default: %(default)s',
    )
    p.add_argument(
        '--result_dir',
        type=expanded,
        default=ROOT / 'demo' / 'restored',
        metavar='FOLDER',
        help='results go into <FOLDER>/<task>/, as PNG with the depth, alpha and colour profile of the input, '
        'and replace older results; default: %(default)s',
    )
    p.add_argument(
        '--weights',
        type=expanded,
        metavar='FILE',
        help="a checkpoint, of this repository's training or a published one; default: the task's published "
        'weights if you have downloaded them, else those that come with the repository',
    )
    p.add_argument(
        '--device',
        default='auto',
        help='auto (a GPU if there is one), cpu, cuda, cuda:<number> or mps; default: %(default)s',
    )
    p.add_argument(
        '--precision',
        default='auto',
        help='fp32 (most exact), bf16 (faster), fp16 (on a GPU), or auto: bf16 where the GPU or the processor '
        'computes in it, else fp32; default: %(default)s',
    )
    add_tlc(p)
    p.add_argument(
        '--tile',
        type=int,
        metavar='N',
        help='restore tiles of N×N pixels one by one and blend them: less memory, and not quite the result for '
        'the whole image; a multiple of 8; default: the whole image, exactly, in as much memory as is free',
    )
    p.add_argument(
        '--tile_overlap',
        type=int,
        metavar='M',
        help='pixels that neighbouring tiles share; default: 32, or half a tile',
    )
    p.add_argument(
        '--compare',
        action='store_true',
        help='also write before | after, side by side, into <FOLDER>/<task>/compare/',
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    print_any_name()
    try:
        with ending_cleanly():
            return restore_all(args, arguments)
    except KeyboardInterrupt:
        return 130


def restore_all(args: argparse.Namespace, arguments: argparse.ArgumentParser) -> int:
    # Here, not above: --help answers at once, and Ctrl-C is quiet while these seconds pass too.
    import numpy as np
    from tqdm import tqdm

    from basicsr.archs.from_weights import build_network
    from basicsr.images.listing import left_alone, list_images, output_names
    from basicsr.images.reader import Image, read_image
    from basicsr.images.writer import write_png
    from basicsr.inference.restorer import Restorer
    from basicsr.tasks import default_weights, find_task
    from basicsr.utils.checkpoint import load_weights
    from basicsr.utils.errors import ImageFileError, RestoreError
    from basicsr.utils.parallel import in_stages

    warnings.filterwarnings('ignore', module='PIL')  # what it says of broken files, the demo says in a sentence
    try:
        task = find_task(args.task)
        inputs = list_images(args.input_dir)
        weights = load_weights(args.weights or default_weights(task.name))
        used = f'weights: {weights.path}' + (f' ({weights.key})' if weights.key else '')
        tlc = weights.with_tlc(args.tlc)
        net = build_network(weights)
        del weights  # the network has its own copy
        restorer = Restorer(
            net, args.device, args.precision, tlc=tlc, tile=args.tile, tile_overlap=args.tile_overlap
        )
        restorer.check_channels()
        folder = args.result_dir / task.name
        compare = folder / 'compare'
        made = compare if args.compare else folder
        made.mkdir(parents=True, exist_ok=True)
        if not all(os.access(each, os.W_OK | os.X_OK) for each in (folder, made)):
            arguments.error(f'--result_dir {args.result_dir}: nothing may be written there')
    except (ValueError, RestoreError) as error:
        arguments.error(str(error))
    except OSError as error:
        arguments.error(f'--result_dir {args.result_dir} cannot be made: {error.strerror or error}')

    print(used)
    print(f'device: {restorer.device}, {restorer.precision}' + (', TLC' if tlc else ''), flush=True)

    if others := left_alone(args.input_dir, folder):
        print(f'left alone in {args.input_dir}: {others}', file=sys.stderr)

    names = output_names(inputs)
    protected = {_identity(path) for path in inputs} - {None}
    written: set[Path] = set()

    def read(path: Path) -> tuple[Path, Image]:
        for target in [folder / names[path]] + ([compare / names[path]] if args.compare else []):
            if _identity(target) in protected:
                raise ImageFileError(f'{path}: its result would overwrite the input {target}')
        return path, read_image(path)

    def restore(item: tuple[Path, Image]) -> tuple[Path, Image, np.ndarray]:
        return *item, restorer(item[1].pixels)

    def write(item: tuple[Path, Image, np.ndarray]) -> None:
        path, before, after = item
        write_png(folder / names[path], after, before.icc_profile)
        written.add(path)
        if args.compare:
            both = np.concatenate([before.pixels, after], axis=1)
            write_png(compare / names[path], both, before.icc_profile)

    failed = 0
    for path, outcome in tqdm(
        in_stages(inputs, read, restore, write, restorer.device), total=len(inputs), unit='image', disable=None
    ):
        try:
            outcome()
        except (ImageFileError, RestoreError, OSError, MemoryError) as error:
            failed += 1
            what = 'not compared' if path in written else 'not restored'
            message = str(error) if isinstance(error, ImageFileError) else f'{path}: {error or "out of memory"}'
            tqdm.write(f'{what}: {message}', file=sys.stderr)
    print(f'{len(written)} of {len(inputs)} images restored, in {folder}')
    return 1 if failed else 0


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for all names, links among them, of one file; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


if __name__ == '__main__':
    sys.exit(main())
