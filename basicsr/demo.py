"""Restores the images of a folder, or one image.

    python demo.py --task motion_deblurring --input_dir my_photos --result_dir sharp_photos
    python demo.py --task Gaussian_Color_Denoising --sigma 25 --input_dir noisy --result_dir clean
    python demo.py --task Dual_Pixel_Defocus_Deblurring --input_dir left --right_dir right --result_dir sharp

Results are PNG files, <result_dir>/<task>/<name>.png. Exit status: 0 if every image was restored, 1 if some were not
(each is named), 2 on a wrong argument, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from basicsr.archs.from_weights import build_network
from basicsr.images.listing import left_alone, list_images, output_names, right_views
from basicsr.images.reader import Image, read_image
from basicsr.images.writer import write_png
from basicsr.inference.restorer import Restorer
from basicsr.tasks import TASKS, Task, check_weights_task, default_weights, find_task
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import add_param_key, add_tlc, file_or_folder, usage_errors
from basicsr.utils.errors import ImageFileError, UsageError, UserError
from basicsr.utils.files import ROOT, SHIPPED, as_json, check_writable
from basicsr.utils.parallel import in_stages


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Restore the images of a folder, or one image.')
    p.add_argument(
        '--task',
        default='motion_deblurring',
        help=f'the task, in any letter case: {", ".join(TASKS)}; default: %(default)s',
    )
    p.add_argument(
        '--input_dir',
        type=file_or_folder,
        default=SHIPPED / 'demo' / 'degraded',
        metavar='FILE_OR_FOLDER',
        help='an image, or a folder of images (png, jpg, bmp, tif, webp; without subfolders); default: %(default)s',
    )
    p.add_argument(
        '--right_dir',
        type=file_or_folder,
        metavar='FILE_OR_FOLDER',
        help='for dual_pixel_defocus_deblurring: the right views; --input_dir has the left ones, under the same names',
    )
    p.add_argument(
        '--result_dir',
        type=file_or_folder,
        default=ROOT / 'demo' / 'restored',
        metavar='FOLDER',
        help='write results to <FOLDER>/<task>/, as PNG with the depth, alpha and colour profile of the input; '
        'older results are replaced; default: %(default)s',
    )
    p.add_argument(
        '--weights',
        type=file_or_folder,
        metavar='FILE',
        help="a checkpoint: from this repository's training, a published one, or another program's (.pth, .ckpt, "
        ".safetensors …); default: the task's published weights if you have downloaded them, else those that come "
        'with the repository',
    )
    add_param_key(p)
    p.add_argument(
        '--sigma',
        type=str.lower,
        help='Gaussian denoising: weights for noise of this standard deviation, 15, 25 or 50 (of 255), or blind: for '
        'any noise up to 50; default: blind',
    )
    p.add_argument(
        '--device',
        default='auto',
        help='auto (a GPU if there is one), cpu, cuda, cuda:<number> or mps; default: %(default)s',
    )
    p.add_argument(
        '--precision',
        default='auto',
        help='fp32 (most exact), bf16 (faster), fp16 (on a GPU), or auto: bf16 if the GPU or the processor computes '
        'in it, else fp32; default: %(default)s',
    )
    add_tlc(p)
    p.add_argument(
        '--tile',
        type=int,
        metavar='N',
        help='restore tiles of N×N pixels one by one and blend them: less memory, but not quite the same result; a '
        'multiple of 8; default: the image at once, exactly, in as much memory as is free',
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
        help='also write before | after, side by side, to <FOLDER>/<task>/compare/',
    )
    p.add_argument(
        '--json',
        action='store_true',
        help='print one JSON object: task, weights, device, precision, tlc, and images, each with input, and output '
        'or error; text goes to stderr',
    )
    web = p.add_argument_group('a page in the browser')
    web.add_argument(
        '--web',
        action='store_true',
        help='serve a page where photographs are dropped, compared and downloaded, instead of restoring '
        '--input_dir; needs the package gradio',
    )
    web.add_argument(
        '--host',
        default='127.0.0.1',
        help='the address to serve at: by default for this computer alone; 0.0.0.0: for everybody on its networks',
    )
    web.add_argument('--port', type=int, help='default: a free one from 7860 on')
    return p


def main(args: argparse.Namespace) -> int:
    with usage_errors():
        task = find_task(args.task)
        check_args(args, task)
    if args.web:
        return serve_page(args, task)
    with usage_errors():
        inputs = list_images(args.input_dir)
        right: dict[Path, Path] = {}
        if args.right_dir:
            right, pairing = right_views(inputs, list_images(args.right_dir))
            if pairing == 'order':
                print('most left and right views have other names: paired in natural order', file=sys.stderr)
        weights_file = args.weights or default_weights(task.name, args.sigma)
        weights = load_weights(weights_file, args.param_key)
        check_weights_task(weights_file, task, args.sigma)
        source = str(weights)
        restorer = Restorer(
            build_network(weights),
            args.device,
            args.precision,
            tlc=weights.with_tlc(args.tlc),
            tile=args.tile,
            tile_overlap=args.tile_overlap,
        )
        del weights  # the network has a copy
        try:
            restorer.check_channels(2 if right else 1)
        except ValueError as error:
            raise UsageError(f'{weights_file}: {error}, for {task.name}') from None
    folder = args.result_dir / task.name
    compare = folder / 'compare'
    targets = [folder, compare] if args.compare else [folder]
    _make_writable(targets, args.result_dir)

    text = sys.stderr if args.json else sys.stdout
    print(f'weights: {source}', file=text)
    print(f'device: {restorer.settings}', file=text, flush=True)
    if restorer.channels != task.channels[0]:  # works, but may be a mistake
        found = f'{restorer.channels} channel{"s" * (restorer.channels > 1)}'
        print(
            f'{weights_file}: a network for images of {found}; the published ones for {task.name} take '
            f'{task.channels[0]}: check that these are the right weights',
            file=sys.stderr,
        )
    if others := left_alone(args.input_dir, folder):
        print(f'left alone in {args.input_dir}: {others}', file=sys.stderr)

    names = output_names(inputs)
    protected = {_identity(path) for path in (*inputs, *right.values())} - {None}
    written: set[Path] = set()

    def read(path: Path) -> tuple[Path, list[Image]]:
        for target in targets:
            if _identity(target / names[path]) in protected:
                raise ImageFileError(f'{path}: its result would overwrite the input {target / names[path]}')
        return path, [read_image(view) for view in (path, right.get(path)) if view is not None]

    def restore(item: tuple[Path, list[Image]]) -> tuple[Path, Image, np.ndarray]:
        path, views = item
        try:
            return path, views[0], restorer(*(view.pixels for view in views))
        except ValueError as error:
            raise ImageFileError(f'{right.get(path, path)}: {error}') from None

    def write(item: tuple[Path, Image, np.ndarray]) -> None:
        path, before, after = item
        write_png(folder / names[path], after, before.icc_profile, before.colour_chunks)
        written.add(path)
        if args.compare:
            both = np.concatenate([before.pixels, after], axis=1)
            write_png(compare / names[path], both, before.icc_profile, before.colour_chunks)

    results = []
    stages = in_stages(inputs, read, restore, write, restorer.device)
    for path, outcome in tqdm(stages, total=len(inputs), unit='image', disable=None):
        result = {'input': str(path)}
        results.append(result)
        try:
            outcome()
        except (UserError, OSError, MemoryError) as error:
            what = 'not compared' if path in written else 'not restored'
            message = str(error) if isinstance(error, ImageFileError) else f'{path}: {error or "out of memory"}'
            tqdm.write(f'{what}: {message}', file=sys.stderr)
            result['error'] = message
        if path in written:
            result['output'] = str(folder / names[path])
    print(f'{len(written)} of {len(inputs)} images restored, in {folder}', file=text)
    if args.json:
        about = {'device': str(restorer.device), 'precision': restorer.precision, 'tlc': restorer.window}
        print(as_json({'task': task.name, 'weights': str(weights_file), **about, 'images': results}))
    return 1 if any('error' in result for result in results) else 0


def serve_page(args: argparse.Namespace, task: Task) -> int:
    """--web. Raises UsageError without gradio."""
    with tempfile.TemporaryDirectory(prefix='restormer-', ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        os.environ['GRADIO_TEMP_DIR'] = str(folder / 'uploads')  # before gradio is imported
        try:
            from basicsr.web import serve
        except ModuleNotFoundError as error:
            if error.name != 'gradio':
                raise
            raise UsageError("--web: the package gradio is required; pip install 'gradio>=6'") from None
        return serve(args, task, folder)


def check_args(args: argparse.Namespace, task: Task) -> None:
    """Raises UsageError on arguments that are not for this task."""
    defaults = parser()
    for name in ('input_dir', 'right_dir', 'result_dir', 'compare', 'json') if args.web else ('host', 'port'):
        if getattr(args, name) != defaults.get_default(name):
            found, allowed = ('with', 'without') if args.web else ('without', 'with')
            raise UsageError(f'--{name}: found {found} --web; allowed: {allowed} it')
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UsageError(f'--port: found {args.port}; allowed: 1 to 65535')
    is_dual = 'dual_pixel_task' in task.network
    if is_dual and args.web:
        raise UsageError(f'--task: found {task.name} with --web; allowed: a task that restores one photograph')
    if is_dual and args.right_dir is None:
        raise UsageError(f'--right_dir: found nothing; allowed: the right views, for {task.name}')
    if not is_dual and args.right_dir is not None:
        raise UsageError(
            f'--right_dir: found with --task {task.name}; allowed: with dual_pixel_defocus_deblurring'
        )
    if args.sigma is None:
        return
    if args.weights is not None:
        raise UsageError(
            '--sigma: found with --weights; allowed: one of them, as it chooses the published weights'
        )
    if args.sigma not in task.sigmas:
        others = [f'--task {other.name}' for other in TASKS.values() if other.sigmas]
        allowed = ', '.join(task.sigmas) or f'none for {task.name}, only with {" or ".join(others)}'
        raise UsageError(f'--sigma: found {args.sigma!r}; allowed: {allowed}')


def _make_writable(folders: list[Path], result_dir: Path) -> None:
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            check_writable(folder)
    except OSError as error:
        raise UsageError(f'--result_dir {result_dir}: cannot be written: {error.strerror or error}') from None


def _identity(path: Path) -> tuple[int, int] | None:
    """Equal for all names and links of one file; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
