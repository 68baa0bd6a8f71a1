"""Downloads the data sets and the published weights of real and of Gaussian denoising, and checks them.

    python Denoising/download_data.py --data weights                                # all nine files, 105 MB each
    python Denoising/download_data.py --data real_denoising gaussian_color_denoising_blind     # some of them
    python Denoising/download_data.py --data train/SIDD val/SIDD SIDD DND           # real noise
    python Denoising/download_data.py --data DIV2K Flickr2K WaterlooED BSD400       # Gaussian noise: to train on
    python Denoising/download_data.py --data CBSD68 Kodak McMaster Urban100 Set12 BSD68        # and to test on

generate_patches_sidd.py and generate_patches_dfwb.py cut the training images into crops. No checksums of some Gaussian
weights are published: their network is checked, and their SHA-256 printed.

The sets come from Google Drive as zip archives (`pip install 'gdown>=6.4'`), and are unpacked into
Denoising/Datasets: Downloads/{SIDD,DIV2K,Flickr2K,WaterlooED,BSD400}, val/SIDD and test/<set>. If Google Drive refuses,
download the archive in a browser to the name given in the message, and repeat the command.

--force and the exit status are as in Motion_Deblurring/download_data.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Denoising.download_data'))

import argparse

from basicsr.data import download

FOLDER = 'Denoising'


def parser() -> argparse.ArgumentParser:
    return download.parser(FOLDER)


def main(args: argparse.Namespace) -> int:
    return download.main(args, FOLDER)
