"""Measures a network, or images restored elsewhere, on the test sets for denoising, beside the published figures.

    python Denoising/evaluate.py --task real_denoising --save_dir FOLDER            # SIDD and DND, published weights
    python Denoising/evaluate.py --task gaussian_color_denoising                    # blind weights, noise 15, 25 and 50
    python Denoising/evaluate.py --task gaussian_gray_denoising --sigma 15 25 50    # weights for each level
    python Denoising/evaluate.py --task gaussian_color_denoising --sigma 25 --weights FILE --datasets CBSD68

Gaussian noise: PSNR on 8-bit images. The noise is the published one, the same for every run; it is not clipped. The
results of a set are named by its level, as CBSD68_sigma15.

SIDD: PSNR and SSIM-3D of the validation blocks, not rounded. --save_dir writes SIDD/Idenoised.mat after the last block.
DND has no public ground truth: --save_dir writes DND/mat/0001.mat and so on, which its server measures. DND needs the
package h5py.

TLC, --precision, --workers, --restored_dir (images restored elsewhere), own pairs and the exit status are as in
Motion_Deblurring/evaluate.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Denoising.evaluate'))

import argparse

from basicsr.evaluation import program
from basicsr.tasks import tasks_of

TASKS = tasks_of('Denoising')


def parser() -> argparse.ArgumentParser:
    return program.parser(TASKS)


def main(args: argparse.Namespace) -> int:
    return program.main(args, TASKS)
