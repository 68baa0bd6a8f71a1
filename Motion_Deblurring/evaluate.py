"""Measures a network, or images restored elsewhere, on the test sets, beside the published figures.

    python Motion_Deblurring/evaluate.py                                     # all test sets, the published weights
    python Motion_Deblurring/evaluate.py --datasets GoPro HIDE --weights FILE --tlc
    python Motion_Deblurring/evaluate.py --datasets GoPro --restored_dir FOLDER    # no network: images of FOLDER
    python Motion_Deblurring/evaluate.py --input_dir A --target_dir B --limit 20   # pairs of one's own, the weights of
                                                                                   # the demo

GoPro and HIDE (protocol gopro): PSNR, SSIM-3D (MATLAB's ssim of an RGB array, the papers') and SSIM-2D (of each
colour). RealBlur (protocol realblur): PSNR and SSIM after alignment to the target, as published, with the number of
images whose alignment did not converge (they are measured where they are); without alignment PSNR of luma, and the
three of GoPro. All of 8-bit images (16 where the target has them), as mean over the images, for the blurred image and
the result.

Weights are measured as demo.py uses them: with TLC if they were validated with it, as those of this repository were.
Images are restored in single precision and in strips of a fixed height, and measured meanwhile by --workers
processes, on whose number nothing depends. An image that cannot be read, restored or measured is named and left out;
what was measured until Ctrl-C is shown and written.

Exit status: 0 if all that was asked for was measured (without --datasets: what is there), 1 if something was not, 2 on
a wrong argument or if there is nothing to measure, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# Run as a script, Python looks for modules in Motion_Deblurring/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.utils.arguments import add_tlc, too_small
from basicsr.utils.console import print_any_name
from basicsr.utils.files import ROOT, absolute, as_json, atomic_write, check_writable, expanded
from basicsr.utils.signals import ending_cleanly

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from basicsr.data.paired_image_dataset import Dataset_PairedImage
    from basicsr.inference import Restorer

DATA = ROOT / 'Motion_Deblurring' / 'Datasets' / 'test'
TASK = 'motion_deblurring'
DOWNLOAD = 'python Motion_Deblurring/download_data.py --data'


class Figure(NamedTuple):
    """`key` is its name in JSON; published figures have so many `digits`."""

    key: str
    title: str
    digits: int


PROTOCOLS = {
    'gopro': (Figure('psnr', 'PSNR', 2), Figure('ssim_3d', 'SSIM-3D', 3), Figure('ssim_2d', 'SSIM-2D', 3)),
    'realblur': (
        Figure('psnr_aligned', 'PSNR, aligned', 2),
        Figure('ssim_aligned', 'SSIM, aligned', 3),
        Figure('psnr_y', 'PSNR of luma', 2),
        Figure('psnr', 'PSNR', 2),
        Figure('ssim_3d', 'SSIM-3D', 3),
        Figure('ssim_2d', 'SSIM-2D', 3),
    ),
}
ALIGNED = 'aligned'  # in the JSON, of each image: whether its alignment converged
TEST_SETS = {'GoPro': 'gopro', 'HIDE': 'gopro', 'RealBlur_J': 'realblur', 'RealBlur_R': 'realblur'}
OWN_PAIRS = 'pairs'  # the name of --input_dir and --target_dir as a set

# Of networks trained on GoPro alone: arXiv 2111.09881, and with the same weights arXiv 2112.04491.
PUBLISHED = {
    'Restormer': {
        'GoPro': {'psnr': 32.92, 'ssim_3d': 0.961},
        'HIDE': {'psnr': 31.22, 'ssim_3d': 0.942},
        'RealBlur_J': {'psnr_aligned': 28.96, 'ssim_aligned': 0.879, 'psnr_y': 28.44},
        'RealBlur_R': {'psnr_aligned': 36.19, 'ssim_aligned': 0.957, 'psnr_y': 35.91},
    },
    'Restormer + TLC': {'GoPro': {'psnr': 33.57}, 'HIDE': {'psnr': 31.49}},
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description='Measure a network, or images restored elsewhere, on the test sets, beside the published figures.'
    )
    pairs = p.add_argument_group('what to measure on')
    pairs.add_argument(
        '--datasets',
        nargs='+',
        type=test_set,
        metavar='SET',
        help=f'one or more of {", ".join(TEST_SETS)} (any letter case); default: all that are there',
    )
    pairs.add_argument(
        '--data_dir',
        type=expanded,
        default=DATA,
        metavar='FOLDER',
        help='where <SET>/input and <SET>/target are; default: Motion_Deblurring/Datasets/test of the repository',
    )
    pairs.add_argument('--input_dir', type=expanded, metavar='FOLDER', help="blurred images of one's own")
    pairs.add_argument(
        '--target_dir',
        type=expanded,
        metavar='FOLDER',
        help='sharp images of the same names as the blurred ones',
    )
    pairs.add_argument(
        '--protocol',
        choices=tuple(PROTOCOLS),
        help='how to measure --input_dir and --target_dir: realblur aligns; default: gopro',
    )
    pairs.add_argument(
        '--limit', type=int, metavar='N', help='only the first N images of each set, for a quick look'
    )
    what = p.add_argument_group('what to measure')
    what.add_argument(
        '--weights',
        type=expanded,
        metavar='FILE',
        help="a checkpoint, of this repository's training or a published one; default: the published one; for "
        "pairs of one's own, if it is not there, the one that comes with the repository",
    )
    add_tlc(what)
    what.add_argument(
        '--precision', help='fp32, the default, bf16 (faster), fp16 (on a GPU), or auto: the fastest'
    )
    what.add_argument(
        '--device', help='auto, the default (a GPU if there is one), cpu, cuda, cuda:<number> or mps'
    )
    what.add_argument(
        '--restored_dir',
        type=expanded,
        metavar='FOLDER',
        help='measure images restored elsewhere, with the names of the sharp ones, in <FOLDER>/<SET> or, for one set, '
        'in FOLDER itself',
    )
    how = p.add_argument_group('how')
    how.add_argument(
        '--workers',
        type=int,
        metavar='N',
        help='processes that measure; default: as many as there are processors',
    )
    how.add_argument(
        '--save_dir',
        type=expanded,
        metavar='FOLDER',
        help='also write the results, as <FOLDER>/<SET>/<name>.png',
    )
    how.add_argument(
        '--json',
        type=expanded,
        metavar='FILE',
        help='also write all figures, those of each image, too; null: infinite, as the PSNR of equal images is',
    )
    return p


def test_set(name: str) -> str:
    """In any letter case."""
    found = {known.lower(): known for known in TEST_SETS}.get(name.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f'found {name}; allowed: {", ".join(TEST_SETS)}')
    return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    if mistake := wrong(args):
        arguments.error(mistake)
    # Here, not above: --help answers at once, and the processes that measure need none of it.
    from basicsr.models.entry_point import STOPS

    print_any_name()
    try:
        with ending_cleanly():
            return evaluate_all(args, arguments)
    except STOPS as error:
        arguments.exit(1, f'{arguments.prog}: {error}\n')
    except KeyboardInterrupt:
        return 130


def wrong(args: argparse.Namespace) -> str:
    """What is wrong with the arguments as a whole; '' if nothing is."""
    if (args.input_dir is None) != (args.target_dir is None):
        return 'found one of --input_dir and --target_dir; allowed: both or neither'
    if args.input_dir and args.datasets:
        return '--datasets: found together with --input_dir; allowed: one of them'
    if args.protocol and not args.input_dir:
        return '--protocol: found without --input_dir; allowed: with it, as each test set has its own'
    given = [
        '--no-tlc' if name == 'tlc' and args.tlc is False else f'--{name}'
        for name in ('weights', 'tlc', 'precision', 'device', 'save_dir')
        if getattr(args, name) is not None
    ]
    if args.restored_dir and given:
        return f'--restored_dir: found {", ".join(given)} beside it; allowed: without, as nothing is restored'
    if mistake := too_small(args, workers=1, limit=1):
        return mistake
    if args.json and (args.json.is_dir() or not absolute(args.json).parent.is_dir()):
        return f'--json: found {args.json}; allowed: a file in a folder that is there'
    if args.json:
        try:
            check_writable(absolute(args.json).parent)  # before the work of hours
        except OSError as error:
            return f'--json: found {args.json}, where nothing can be written ({error.strerror}); allowed: another place'
    return ''


def evaluate_all(args: argparse.Namespace, arguments: argparse.ArgumentParser) -> int:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from basicsr.inference import RestoreError
    from basicsr.utils.parallel import processors

    places, missing = chosen_places(args)
    for sentence in missing:
        print(sentence, file=sys.stderr, flush=True)
    if not places:
        arguments.exit(2, f'{arguments.prog}: there is nothing to measure on\n')
    sets = [TestSet(place, args.limit) for place in places]  # all of them, before any work
    restorer: Restorer | None = None
    about: dict[str, Any] = {'limit': args.limit}
    if args.restored_dir:
        about['restored_dir'] = str(args.restored_dir)
    else:
        try:
            restorer, weights, tlc = build_restorer(args)
        except (ValueError, RestoreError) as error:
            arguments.error(str(error))
        print(f'weights: {weights}')
        print(f'device: {restorer.device}, {restorer.precision}{", TLC" if tlc else ""}', flush=True)
        about |= {'weights': weights, 'precision': restorer.precision, 'tlc': tlc}

    results: dict[str, Any] = {}
    failures = bool(args.datasets and missing)
    workers = args.workers or processors()
    # Not forked: a copy of a process that has threads, or a GPU, may wait for ever.
    with ProcessPoolExecutor(workers, get_context('spawn'), start_worker) as pool:
        try:
            for one in sets:
                done = Measured([], [])
                try:
                    evaluate(one, restorer, pool, workers, done)
                finally:  # what there is, of however few images: they may have taken hours
                    failures |= bool(done.failed)
                    if done.images:
                        print(f'\n{title(one, done)}\n{table(one, done)}', flush=True)
                        results[one.name] = as_data(one, done)
                        if args.json:
                            atomic_write(absolute(args.json), as_json({**about, 'datasets': results}).encode())
        finally:
            pool.shutdown(cancel_futures=True)
    return 1 if failures else 0


# --- what to measure on -------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Folders of a set; `restored`: where its restored images are, if a network is not to make them; `save`: where to
    write those that it makes."""

    name: str
    protocol: str
    input: Path
    target: Path
    restored: Path | None = None
    save: Path | None = None


class TestSet:
    """The first `count` pairs of a place are measured. Raises DataError on images without a partner."""

    def __init__(self, place: Place, limit: int | None) -> None:
        from basicsr.data.paired_image_dataset import Dataset_PairedImage
        from basicsr.utils.errors import DataError

        self.place, self.name, self.protocol = place, place.name, place.protocol
        self.pairs = Dataset_PairedImage(str(place.input), str(place.target))
        self.count = min(limit or len(self.pairs), len(self.pairs))
        self.restored: Dataset_PairedImage | None = None
        if place.restored is not None:
            self.restored = Dataset_PairedImage(str(place.restored))
            self._check(self.restored.names, place.restored)
        if place.save is not None and any(is_same(place.save, each) for each in (place.input, place.target)):
            raise DataError(
                f'--save_dir: found {place.save}, where images of the set are; allowed: another place'
            )

    def _check(self, restored: list[str], folder: Path) -> None:
        from basicsr.utils.errors import DataError
        from basicsr.utils.text import listed

        wanted = self.pairs.names
        problems = {
            'missing': [name for name in wanted[: self.count] if name not in set(restored)],
            'without a partner of the same name': [name for name in restored if name not in set(wanted)],
        }
        said = [
            f'{len(names)} restored image{"s are" if len(names) > 1 else " is"} {what}: {listed(names)}'
            for what, names in problems.items()
            if names
        ]
        if said:
            raise DataError(f'{folder}: {"; ".join(said)}')


def is_same(one: Path, other: Path) -> bool:
    """Also by another way, or in other letters where these do not count."""
    return one.exists() and other.exists() and one.samefile(other)


def chosen_places(args: argparse.Namespace) -> tuple[list[Place], list[str]]:
    """Those that are there, and a sentence for each that is not."""
    if args.input_dir:
        folders = absolute(args.input_dir), absolute(args.target_dir)
        places, missing = [Place(OWN_PAIRS, args.protocol or 'gopro', *folders)], []
    else:
        data = absolute(args.data_dir)
        places, missing = [], []
        for name in dict.fromkeys(args.datasets or TEST_SETS):
            place = Place(name, TEST_SETS[name], data / name / 'input', data / name / 'target')
            absent = [folder for folder in (data / name, place.input, place.target) if not folder.is_dir()]
            if absent:
                missing.append(f'{name}: skipped, as {absent[0]} is not there; {DOWNLOAD} {name} gets it')
            else:
                places.append(place)
    if args.save_dir:
        places = [place._replace(save=absolute(args.save_dir) / place.name) for place in places]
    if args.restored_dir:
        root = absolute(args.restored_dir)
        found = {place: root / place.name for place in places}
        if len(places) == 1 and not found[places[0]].is_dir():
            found[places[0]] = root
        missing += [
            f'{place.name}: skipped, as {folder} is not there'
            for place, folder in found.items()
            if not folder.is_dir()
        ]
        places = [place._replace(restored=folder) for place, folder in found.items() if folder.is_dir()]
    return places, missing


# --- what to measure ----------------------------------------------------------------------------------------


def build_restorer(args: argparse.Namespace) -> tuple[Restorer, str, bool | int]:
    """And the weights and the TLC it has. Raises CheckpointError, DeviceError, ValueError, RestoreError."""
    from basicsr.archs.from_weights import build_network
    from basicsr.inference import Restorer
    from basicsr.tasks import TASKS, default_weights
    from basicsr.utils.checkpoint import load_weights
    from basicsr.utils.errors import CheckpointError

    path = args.weights
    if path is None and args.input_dir:
        path = default_weights(TASK)
    elif path is None:
        task = TASKS[TASK]
        path = ROOT / task.folder / 'pretrained_models' / task.published
        if not path.is_file():
            raise CheckpointError(
                f'{path}: found no published weights; allowed: these, which {DOWNLOAD} weights gets, or others '
                f'with --weights, as {task.shipped_file}'
            )
    weights = load_weights(path)
    tlc = weights.with_tlc(args.tlc)
    restorer = Restorer(
        build_network(weights), args.device or 'auto', args.precision or 'fp32', tlc=tlc, fixed_strips=True
    )
    if restorer.channels != 3:
        raise ValueError(f'{path}: found a network that takes {restorer.channels} channels; allowed: 3')
    return restorer, f'{weights.path}' + (f' ({weights.key})' if weights.key else ''), tlc


def compared_images(
    one: TestSet, restorer: Restorer | None
) -> Iterator[tuple[int, Callable[[], dict[str, np.ndarray]]]]:
    """The index of each pair, and a function, as of `in_stages`, that gives 'restored', 'lq' and 'gt' in the levels of
    the last, or raises what `evaluate` of `basicsr.evaluation.evaluate` raises. The result is that of the network, or,
    without a restorer, from its file."""
    from basicsr.evaluation.evaluate import levels_like, restore_pairs

    def images(_: int, pair: dict[str, Any], restored: Tensor) -> dict[str, np.ndarray]:
        arrays = levels_like(pair['gt'], restored, pair['lq'], pair['gt'])
        return dict(zip(('restored', 'lq', 'gt'), arrays, strict=True))

    indices = range(one.count)
    if restorer is not None:
        return restore_pairs(restorer.restore, one.pairs, indices, one.place.save, images)
    return ((index, lambda index=index: images(index, *restored_elsewhere(one, index))) for index in indices)


def restored_elsewhere(one: TestSet, index: int) -> tuple[dict[str, Any], Tensor]:
    """A pair, and its result, (C, H, W) in [0, 1], from its file. Raises DataError."""
    from basicsr.data.transforms import to_float
    from basicsr.utils.errors import DataError

    assert one.restored is not None
    number = one.restored.names.index(one.pairs.names[index])
    pair, restored = one.pairs[index], one.restored[number]['lq']
    if restored.shape != pair['gt'].shape:
        found, allowed = ('{2}x{1}'.format(*image.shape) for image in (restored, pair['gt']))
        raise DataError(
            f'{one.restored.files(number)}: found {found}; allowed: the size of its target, {allowed}'
        )
    return pair, to_float(restored)


# --- measuring ----------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What came out for a set: the figures of each image that could be measured, in the set's order, and a sentence
    about each other."""

    images: list[dict[str, Any]]
    failed: list[str]


def evaluate(one: TestSet, restorer: Restorer | None, pool: Executor, workers: int, done: Measured) -> None:
    """Fills `done`. Raises what would fail for other images, too: ImageFileError if a result cannot be written, and
    ChildProcessError if a process dies."""
    from concurrent.futures.process import BrokenProcessPool

    from tqdm import tqdm

    from basicsr.inference import RestoreError
    from basicsr.utils.errors import DataError

    with tqdm(desc=one.name, total=one.count, unit='image', leave=False, disable=None) as bar:

        def fail(sentence: str) -> None:
            done.failed.append(sentence)
            bar.write(f'not measured: {sentence}', file=sys.stderr)
            bar.update()

        def jobs() -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
            for index, outcome in compared_images(one, restorer):
                try:
                    images = outcome()
                except (DataError, FloatingPointError, RestoreError) as error:
                    fail(str(error))
                    continue
                yield index, one.protocol, images

        try:
            for index, job in in_order(pool, jobs(), 2 * workers):
                try:
                    figures = job.result()
                except MeasureError as error:
                    fail(f'{one.pairs.files(index)}: {error}')
                    continue
                done.images.append({'name': one.pairs.names[index], **figures})
                bar.update()
        except BrokenProcessPool:
            raise ChildProcessError(
                f'{one.name}: a process that measures has died, perhaps for want of memory; fewer --workers take less'
            ) from None


class MeasureError(ValueError):
    """Images that cannot be measured."""


NO_MEMORY = 'cannot be measured in the memory there is; fewer --workers take less'


def in_order(
    pool: Executor, jobs: Iterable[tuple[int, str, dict[str, np.ndarray]]], ahead: int
) -> Iterator[tuple[int, Future[dict[str, float | bool]]]]:
    """`measure` of each job, (index, *arguments), with the index, and done if `ahead` others are waiting; no more wait
    at a time, as each holds images. What stops the jobs is raised after those before it."""
    waiting: deque[Any] = deque()
    stopped: Exception | None = None
    try:
        for index, *job in jobs:
            waiting.append((index, pool.submit(measure, *job)))
            if len(waiting) > ahead:
                yield waiting.popleft()
    except Exception as error:
        stopped = error
    yield from waiting
    if stopped is not None:
        raise stopped


def start_worker() -> None:
    """Of a process that measures."""
    from multiprocessing import parent_process

    import cv2

    cv2.setNumThreads(1)  # the other processors have processes of their own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the main process that ends the others

    def end_with_parent() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def measure(protocol: str, images: dict[str, np.ndarray]) -> dict[str, float | bool]:
    """Figures of `restored` and, as `input_<key>`, of `lq` against `gt`. All (H, W, 3), uint8 or uint16."""
    import cv2

    try:
        result, blurred = (figures_of(protocol, images[kind], images['gt']) for kind in ('restored', 'lq'))
    except ValueError as error:
        raise MeasureError(str(error)) from None
    except MemoryError:
        raise MeasureError(NO_MEMORY) from None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MeasureError(NO_MEMORY) from None
        raise MeasureError(f'OpenCV cannot measure them: {error.err}') from None
    return {**result, **{f'input_{key}': value for key, value in blurred.items()}}


def figures_of(protocol: str, image: np.ndarray, target: np.ndarray) -> dict[str, float | bool]:
    from basicsr.metrics.aligned import calculate_aligned
    from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim, calculate_ssim_3d

    plain = {
        'psnr': calculate_psnr(image, target),
        'ssim_3d': calculate_ssim_3d(image, target),
        'ssim_2d': calculate_ssim(image, target),
    }
    if protocol == 'gopro':
        return plain
    aligned = calculate_aligned(image, target)
    return {
        'psnr_aligned': aligned.psnr,
        'ssim_aligned': aligned.ssim,
        'psnr_y': calculate_psnr(image, target, test_y_channel=True),
        **plain,
        ALIGNED: aligned.converged,
    }


# --- what is said -------------------------------------------------------------------------------------------


def title(one: TestSet, done: Measured) -> str:
    there, measured = len(one.pairs), len(done.images)
    if measured == there:
        return f'{one.name}: {there:,} images'
    apart = '; the published figures are of all' if published(one) else ''
    limit = f'the first {one.count:,} of ' if one.count < there else ''
    of = '' if measured == one.count else f'{measured:,} of '
    return f'{one.name}: {of}{limit}{there:,} images alone{" (--limit)" if limit else ""}{apart}'


def published(one: TestSet) -> dict[str, dict[str, float]]:
    """Of each method with any for this set."""
    return {method: sets[one.name] for method, sets in PUBLISHED.items() if one.name in sets}


def table(one: TestSet, done: Measured) -> str:
    """A line for each figure: of the blurred images, of the results, and as published, if it is."""
    from basicsr.evaluation.evaluate import means
    from basicsr.evaluation.report import fixed_width

    methods, mean = published(one), means(done.images)
    rows = [['', 'blurred', 'result', *(f'{method}, published' for method in methods)]]
    for key, name, digits in PROTOCOLS[one.protocol]:
        ours = [f'{mean[start + key]:.4f}' for start in ('input_', '')]
        theirs = [f'{figures[key]:.{digits}f}' if key in figures else '-' for figures in methods.values()]
        rows.append([name, *ours, *theirs])
    if lost := not_aligned(one, done):
        rows.append(['images not aligned', *map(str, lost.values()), *('-' for _ in methods)])
    return '\n'.join(fixed_width(rows))


def not_aligned(one: TestSet, done: Measured) -> dict[str, int]:
    """How many blurred images, and how many results; nothing if this protocol does not align."""
    if one.protocol != 'realblur':
        return {}
    return {
        what: sum(not image[start + ALIGNED] for image in done.images)
        for what, start in (('blurred', 'input_'), ('result', ''))
    }


def as_data(one: TestSet, done: Measured) -> dict[str, Any]:
    """For JSON."""
    from basicsr.evaluation.evaluate import means

    lost = not_aligned(one, done)
    return {
        'protocol': one.protocol,
        'input_dir': str(one.place.input),
        'target_dir': str(one.place.target),
        'images_there': len(one.pairs),
        'published': published(one),
        'mean': means(done.images),
        **({'not_aligned': lost} if lost else {}),
        **({'not_measured': done.failed} if done.failed else {}),
        'images': done.images,
    }


if __name__ == '__main__':
    sys.exit(main())
