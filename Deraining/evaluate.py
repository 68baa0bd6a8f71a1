"""Measures a network, or images restored elsewhere, on the test sets for deraining, beside the published figures.

    python Deraining/evaluate.py                                     # all test sets, the published weights
    python Deraining/evaluate.py --datasets Rain100L Test100 --weights FILE
    python Deraining/evaluate.py --restored_dir FOLDER               # no network: images of FOLDER/<SET>
    python Deraining/evaluate.py --input_dir A --target_dir B        # your own pairs

PSNR and SSIM (11×11) of luma, Y of MATLAB's rgb2ycbcr rounded to integers, as published, and PSNR of RGB: all on 8-bit
images, as means over the images; then the mean over the sets that are complete.

TLC, --precision, --workers, --restored_dir (images restored elsewhere), own pairs and the exit status are as in
Motion_Deblurring/evaluate.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Deraining.evaluate'))

import argparse

from basicsr.evaluation import program
from basicsr.tasks import tasks_of

TASKS = tasks_of('Deraining')


def parser() -> argparse.ArgumentParser:
    return program.parser(TASKS)


def main(args: argparse.Namespace) -> int:
    return program.main(args, TASKS)
