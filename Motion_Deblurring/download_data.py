"""Gets the data sets and the published weights of motion deblurring, and checks them.

    python Motion_Deblurring/download_data.py --data weights             # 105 MB, from GitHub
    python Motion_Deblurring/download_data.py --data train               # GoPro, to train on
    python Motion_Deblurring/download_data.py --data test                # GoPro, HIDE, RealBlur_J, RealBlur_R
    python Motion_Deblurring/download_data.py --data GoPro RealBlur_J    # some of the test sets

The sets come from Google Drive, by `pip install 'gdown>=6.4'`, as zip archives, and are unpacked into
Motion_Deblurring/Datasets: train/GoPro/{input,target}, test/<set>/{input,target}. If Google Drive refuses, an archive
that was downloaded in a browser, to the name that the message says, is as good.

What is there and right is kept; what is there and wrong stays, unless --force says to replace it. Nothing unfinished
ever has its final name, and the same command goes on where it was ended. Exit status: 0 if all is there, 1 if
something is not (each is named), 2 on a wrong argument or without gdown, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

# Run as a script, Python looks for modules in Motion_Deblurring/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.utils.archive import unpack_folders
from basicsr.utils.console import print_any_name
from basicsr.utils.download import RemoteFile, fetch, fetch_zip_from_drive
from basicsr.utils.errors import ArchiveError, DownloadError, InUseError, WrongArchiveError
from basicsr.utils.files import (
    ROOT,
    absolute,
    lock_file,
    made_folder,
    remove_leftovers,
    scratch_folder,
    sync_folder,
)
from basicsr.utils.signals import ending_cleanly

DATASETS = ROOT / 'Motion_Deblurring' / 'Datasets'
PRETRAINED = ROOT / 'Motion_Deblurring' / 'pretrained_models'
WITHOUT_GDOWN = "the package gdown is needed, which is not installed, or too old: pip install 'gdown>=6.4'"
KINDS = ('input', 'target')  # folders: blurred and sharp


class DataSet(NamedTuple):
    place: str  # below the folder of data sets
    drive_id: str  # of the zip archive
    pairs: int

    @property
    def name(self) -> str:
        return self.place.split('/')[1]

    @property
    def archive(self) -> str:
        return f'{self.name}_{self.place.split("/")[0]}.zip'


TRAIN = {'train': DataSet('train/GoPro', '1zgALzrLCC_tcXKu_iHQTHukKUVT1aodI', 2103)}
TEST = {
    'GoPro': DataSet('test/GoPro', '1k6DTSHu4saUgrGTYkkZXTptILyG9RRll', 1111),
    'HIDE': DataSet('test/HIDE', '1XRomKYJF1H92g1EuD06pCQe4o6HlwB7A', 2025),
    'RealBlur_J': DataSet('test/RealBlur_J', '1Rb1DhhXmX7IXfilQ-zL9aGjQfAAvQTrW', 980),
    'RealBlur_R': DataSet('test/RealBlur_R', '1glgeWXCy7Y0qWDc0MXBTUlZYJf8984hS', 980),
}
WEIGHTS = RemoteFile(
    url='https://github.com/swz30/Restormer/releases/download/v1.0/motion_deblurring.pth',
    size=104_700_429,
    sha256='194e38fb5b607c9dc5a5b3e08e65b2e79ee2bf0ef5048e0612f6b2ff2f79da31',
)
CHOICES = ('weights', *TRAIN, 'test', *TEST)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description='Get the data sets and the published weights of motion deblurring, and check them.'
    )
    p.add_argument(
        '--data',
        nargs='+',
        required=True,
        choices=CHOICES,
        metavar='WHAT',
        help=f'one or more of {", ".join(CHOICES)}; train: GoPro; test: all four test sets; weights: the published '
        'ones, for non-commercial use only',
    )
    p.add_argument(
        '--output',
        type=Path,
        metavar='FOLDER',
        help='for another place; default: Motion_Deblurring/Datasets of the repository, or pretrained_models for '
        'the weights, where option files and demo.py look',
    )
    p.add_argument('--force', action='store_true', help='replace what is there and wrong')
    p.add_argument(
        '--keep_archives', action='store_true', help='keep the zip archives when they have been unpacked'
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    print_any_name()
    try:
        with ending_cleanly():
            return get_all(args, arguments)
    except KeyboardInterrupt:
        return 130


def get_all(args: argparse.Namespace, arguments: argparse.ArgumentParser) -> int:
    from basicsr.utils.errors import DataError

    output = absolute(args.output) if args.output else None
    sets = chosen_sets(args.data)
    if any(needs_download(output or DATASETS, one) for one in sets) and not has_gdown():
        arguments.error(f'to download data sets, {WITHOUT_GDOWN}')
    failures = 0

    def attempt(get: Callable[..., str], *what: Any) -> None:
        try:
            print(get(*what), flush=True)
        except (ArchiveError, DataError, DownloadError) as error:
            complain(str(error))
        except OSError as error:  # of a folder that may not be read, or an archive that may not be removed
            complain(f'{error.filename}: {error.strerror}')

    def complain(text: str) -> None:
        nonlocal failures
        failures += 1
        print(f'{arguments.prog}: {text}', file=sys.stderr, flush=True)

    if 'weights' in args.data:
        attempt(get_weights, output or PRETRAINED, args.force)
    for one in sets:
        attempt(get_set, output or DATASETS, one, args)
    return 1 if failures else 0


def has_gdown() -> bool:
    """In a release that notices silence, and what is cut short."""
    try:
        import gdown.exceptions
    except ImportError:
        return False
    return 'timeout' in inspect.signature(gdown.download).parameters


def chosen_sets(names: Sequence[str]) -> list[DataSet]:
    """Each once."""
    return [
        one
        for group, sets in (('train', TRAIN), ('test', TEST))
        for name, one in sets.items()
        if name in names or group in names
    ]


# --- weights ------------------------------------------------------------------------------------------------


def get_weights(folder: Path, force: bool) -> str:
    """What to say of them. Raises DownloadError."""
    path = folder / WEIGHTS.name
    if path.exists():
        if WEIGHTS.is_at(path):
            return f'{path} is there already, and whole'
        if not force:
            raise DownloadError(
                f'{path}: found another file than the published weights, by its size or checksum; allowed: these, '
                'or none; --force replaces it'
            )
    fetch(WEIGHTS, path)
    return f'{path} is there, and whole; its licence allows non-commercial use only'


# --- data sets ----------------------------------------------------------------------------------------------


def needs_download(datasets: Path, one: DataSet) -> bool:
    return not (is_whole(datasets, one) or os.path.lexists(datasets / one.archive))


def is_whole(datasets: Path, one: DataSet) -> bool:
    from basicsr.utils.errors import DataError

    place = datasets / one.place
    try:
        check_pairs(place, one, str(place))
    except DataError:
        return False
    return True


def check_pairs(place: Path, one: DataSet, where: str) -> None:
    """By their names and number: the archives have no published checksum. Raises DataError, about `where`."""
    from basicsr.data.sources import FolderSource
    from basicsr.utils.errors import DataError
    from basicsr.utils.text import listed

    blurred, sharp = (FolderSource(place / kind).names for kind in KINDS)
    if lonely := sorted({*blurred} ^ {*sharp}):
        raise DataError(
            f'{where}: found {len(lonely)} image{"s" * (len(lonely) > 1)} without a partner of the same name: '
            f'{listed(lonely)}'
        )
    if len(blurred) != one.pairs:
        raise DataError(f'{where}: found {len(blurred):,} pairs; allowed: {one.pairs:,}')


def get_set(datasets: Path, one: DataSet, args: argparse.Namespace) -> str:
    """What to say of it. Raises ArchiveError, DataError or DownloadError."""
    from basicsr.utils.errors import DataError

    place, archive = datasets / one.place, datasets / one.archive
    if is_whole(datasets, one):
        # Kept by --keep_archives, or by an end just before it would have been removed.
        kept = f'; {archive} is not needed for it any more' if archive.exists() else ''
        return f'{place} is there already: {one.pairs:,} pairs{kept}'
    if not args.force and all(is_filled(place / kind) for kind in KINDS):
        refuse(place, one)
    try:
        with made_folder(datasets), lock_file(datasets / f'.{one.archive}.lock'):
            if not is_whole(datasets, one):  # another process may have made it so
                fetch_and_unpack(archive, place, one, args)
    except InUseError as error:
        raise DataError(f'{archive}: {error}') from None
    return f'{place} is there: {one.pairs:,} pairs'


def fetch_and_unpack(archive: Path, place: Path, one: DataSet, args: argparse.Namespace) -> None:
    """Raises ArchiveError, DataError or DownloadError."""
    is_new = not os.path.lexists(archive)
    if is_new:
        fetch_zip_from_drive(one.drive_id, archive)
    try:
        unpack(archive, place, one, args.force)
    except WrongArchiveError as error:
        if is_new or not args.force:
            raise WrongArchiveError(f'{error}; --force downloads it anew') from None
        if not has_gdown():
            raise WrongArchiveError(f'{error}; to download it anew, {WITHOUT_GDOWN}') from None
        fetch_zip_from_drive(one.drive_id, archive)
        unpack(archive, place, one, args.force)
    if not args.keep_archives:
        archive.unlink()


def is_filled(folder: Path) -> bool:
    """Whether something is in the place of a folder."""
    return any(folder.iterdir()) if folder.is_dir() else os.path.lexists(folder)


def listing(folder: Path) -> dict[Path, int]:
    """The size of every file."""
    return {path.relative_to(folder): path.stat().st_size for path in folder.rglob('*') if path.is_file()}


def refuse(place: Path, one: DataSet) -> NoReturn:
    from basicsr.utils.errors import DataError

    raise DataError(
        f'{place}: found {" and ".join(KINDS)} with other files than the {one.pairs:,} pairs; allowed: these, or '
        'nothing; --force replaces them'
    )


def check_archive(archive: Path, inside: PurePosixPath, unpacked: Path, one: DataSet) -> None:
    """Raises WrongArchiveError if it is of another set: `inside` is where it had the two folders."""
    from basicsr.utils.errors import DataError

    others = {other.name.casefold() for other in (*TRAIN.values(), *TEST.values())} - {one.name.casefold()}
    if inside.name.casefold() in others:  # RealBlur's two have as many pairs, of the same names
        raise WrongArchiveError(f'{archive}: found the set {inside.name} in it; allowed: {one.name}')
    try:
        check_pairs(unpacked, one, str(archive))
    except DataError as error:
        raise WrongArchiveError(str(error)) from None


def unpack(archive: Path, place: Path, one: DataSet, force: bool) -> None:
    """Raises ArchiveError or DataError; each of the two folders is then as it was."""
    from basicsr.utils.errors import DataError

    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place)
        with scratch_folder(place) as scratch:
            check_archive(archive, unpack_folders(archive, KINDS, scratch), scratch, one)
            # One may be there, where a command was ended between the two.
            new = [kind for kind in KINDS if listing(place / kind) != listing(scratch / kind)]
            if not force and any(is_filled(place / kind) for kind in new):
                refuse(place, one)
            for kind in new:
                if is_filled(place / kind):
                    (place / kind).rename(scratch / f'old {kind}')  # to be removed with it
                sync_folder(scratch / kind)
                (scratch / kind).rename(place / kind)
        sync_folder(place)
    except OSError as error:
        raise DataError(f'{place}: cannot be written: {error.strerror or error}') from None
    finally:
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()  # an empty folder looks like a set


if __name__ == '__main__':
    sys.exit(main())
