"""Measures a network, or images restored elsewhere, on DPDD, beside the published figures.

    python Defocus_Deblurring/evaluate.py --task single_image_defocus_deblurring    # the published weights
    python Defocus_Deblurring/evaluate.py --task dual_pixel_defocus_deblurring --save_dir FOLDER
    python Defocus_Deblurring/evaluate.py --task single_image_defocus_deblurring --input_dir A --target_dir B

PSNR, SSIM (7×7), MAE and, if the package lpips is installed, LPIPS, as published: in [0, 1], not rounded. The task
single_image takes the high byte of 16-bit files, also of the sharp images; dual_pixel takes all 16 bits. Pairs are
matched by name, or, if most names are not in all folders, as in DPDD's original files, in natural order.

The figures of indoor and outdoor scenes need indoor_labels.npy and outdoor_labels.npy in DPDD's folder: positions in
the natural order of the images, from 1.

TLC, --precision, --workers, --restored_dir (images restored elsewhere), own pairs and the exit status are as in
Motion_Deblurring/evaluate.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Defocus_Deblurring.evaluate'))

import argparse

from basicsr.evaluation import program
from basicsr.tasks import tasks_of

TASKS = tasks_of('Defocus_Deblurring')


def parser() -> argparse.ArgumentParser:
    return program.parser(TASKS)


def main(args: argparse.Namespace) -> int:
    return program.main(args, TASKS)
