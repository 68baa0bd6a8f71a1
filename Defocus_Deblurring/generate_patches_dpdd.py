"""Cuts the DPDD frames into the crops that the paper trains and validates on, as PNG files of the frames' depth.

    python Defocus_Deblurring/generate_patches_dpdd.py                # train/DPDD and val/DPDD
    python Defocus_Deblurring/generate_patches_dpdd.py --data train   # one of them

All paths are in Defocus_Deblurring/Datasets. download_data.py puts the frames into Downloads/DPDD/{train,val}; the
crops go to {train,val}/DPDD/{inputL,inputR,inputC,target}_crops.

Training frames are cut into 512×512 pixels every 204 (an overlap of 60 %) and along the last row and column, row by
row. The 30 % of a frame's crops whose target is least sharp (see `sharpest`) are left out: 1680×1120 pixels give 28
crops, of which 20 stay, <frame>-<n>.png, n from 1 over those. A validation frame gives <frame>.png: the 256×256 pixels
in its centre. <frame> is the name in inputC. The frames of the four folders are matched by name or, if most names
differ, as in the original set, by natural order.

Repeating the command writes what is missing; another image with the name of a crop is never replaced. Exit status: 0 if
the folders hold exactly these crops, 1 if not, 2 on a wrong argument, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Defocus_Deblurring.generate_patches_dpdd'))

import argparse
from collections.abc import Iterable, Sequence
from functools import partial

import cv2
import numpy as np

from basicsr.data import crop_files
from basicsr.data.crop_files import centre_crop, shape_of
from basicsr.data.crops import Window, crop_windows, numbered
from basicsr.data.named_images import NamedImages
from basicsr.data.sources import open_sources
from basicsr.images.listing import pairing_of
from basicsr.tasks import DUAL_PIXEL_DEFOCUS_DEBLURRING
from basicsr.utils.errors import DataError
from basicsr.utils.files import absolute

KINDS = ('inputC', 'inputL', 'inputR', 'target')
CENTRE = 256  # pixels of the validation crops
LEFT_OUT = 0.3  # of the crops of a frame
SOBEL_SIZES = (3, 7, 11, 15)


def parser() -> argparse.ArgumentParser:
    datasets = DUAL_PIXEL_DEFOCUS_DEBLURRING.datasets
    p = crop_files.parser('Cut the DPDD frames into the crops to train and to validate on.', datasets, 512, 204)
    p.add_argument(
        '--data', nargs='+', choices=['train', 'val'], default=['train', 'val'], help='which; default: both'
    )
    return p


def main(args: argparse.Namespace) -> None:
    datasets = absolute(args.datasets)
    crops_of = {
        'train': partial(sharp_crops, size=args.crop_size, stride=args.stride),
        'val': partial(centre_crop, size=CENTRE),
    }
    frames = {}
    for group in dict.fromkeys(args.data):  # open all before any work
        place = datasets / 'Downloads' / 'DPDD' / group
        try:
            sources = open_sources({kind: str(place / kind) for kind in KINDS}, {'type': 'disk'})
            pairing = pairing_of(*(source.names for source in sources.values()))
            frames[group] = NamedImages(sources, pairing=pairing)
        except DataError as error:
            how = f'python Defocus_Deblurring/download_data.py --data {group}'
            raise DataError(f'{error}; {how} gets the frames') from None
        print(f'{place}: the frames of {", ".join(KINDS)} are matched by {pairing}', flush=True)
    for group, images in frames.items():
        folders = {kind: datasets / group / 'DPDD' / f'{kind}_crops' for kind in KINDS}
        crop_files.cut(images, crops_of[group], folders, args.workers)


def sharp_crops(
    name: str, images: dict[str, np.ndarray], size: int, stride: int
) -> Iterable[tuple[str, Window]]:
    windows = crop_windows(*shape_of(images), size, stride)
    grey = cv2.cvtColor(images['target'], cv2.COLOR_RGB2GRAY)
    kept = sharpest([grey[top : top + rows, left : left + columns] for top, left, rows, columns in windows])
    return numbered(name, [windows[index] for index in kept])


def sharpest(crops: Sequence[np.ndarray]) -> list[int]:
    """Indices of the crops, (H, W), without the int(0.3 · number) least sharp, in order.

    Sharpness is the product over four sizes of Sobel's filter of the sum of gradient lengths, scaled to 0 … 1 over the
    crops (the rule of DPDNet, Abuolaim and Brown, ECCV 2020).
    """
    gradients = np.array([[gradient(crop, size) for crop in crops] for size in SOBEL_SIZES])
    least, most = gradients.min(axis=1, keepdims=True), gradients.max(axis=1, keepdims=True)
    # Skip a size for which all crops are equal, as for flat images.
    scaled = np.divide(gradients - least, most - least, out=np.ones_like(gradients), where=most > least)
    order = np.argsort(scaled.prod(axis=0), kind='stable')
    return sorted(order[int(LEFT_OUT * len(crops)) :].tolist())


def gradient(crop: np.ndarray, size: int) -> float:
    """The sum of the lengths of the gradients by Sobel's filter of `size` pixels."""
    x, y = (cv2.Sobel(crop, cv2.CV_64F, *axis, ksize=size) for axis in ((1, 0), (0, 1)))
    return float(np.hypot(x, y).sum())
