"""Measures a network, or images restored elsewhere, on the test sets, beside the published figures.

    python Motion_Deblurring/evaluate.py                                     # all test sets, the published weights
    python Motion_Deblurring/evaluate.py --datasets GoPro HIDE --weights FILE --tlc
    python Motion_Deblurring/evaluate.py --datasets GoPro --restored_dir FOLDER    # no network: images of FOLDER
    python Motion_Deblurring/evaluate.py --input_dir A --target_dir B --limit 20   # your own pairs, the demo's weights

GoPro and HIDE (protocol gopro): PSNR, SSIM-3D (MATLAB's ssim of an RGB array, as in the papers) and SSIM-2D (of each
colour). RealBlur (protocol realblur): PSNR and SSIM after alignment to the target, as published, and the number of
images whose alignment did not converge (they are measured in place); without alignment, PSNR of luma and the three
figures of GoPro. All on 8-bit images (16-bit if the target has 16), as means over the images, for the blurred images
and the results.

TLC is used as in demo.py: if the weights were validated with it, as those of this repository were. Images are restored
in single precision and in strips of a fixed height, while --workers threads measure; the figures do not depend on their
number. An image that cannot be read, restored or measured is named and left out. After an error or Ctrl-C, the figures
measured so far are printed and written.

Exit status: 0 if every requested image was measured (without --datasets: of the sets found), 1 if not, 2 on a wrong
argument or without any set, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Motion_Deblurring.evaluate'))

import argparse

from basicsr.evaluation import program
from basicsr.tasks import tasks_of

TASKS = tasks_of('Motion_Deblurring')


def parser() -> argparse.ArgumentParser:
    return program.parser(TASKS)


def main(args: argparse.Namespace) -> int:
    return program.main(args, TASKS)
