"""Downloads the data set and the published weights of defocus deblurring, and checks them.

    python Defocus_Deblurring/download_data.py --data weights                           # 105 MB each, from GitHub
    python Defocus_Deblurring/download_data.py --data single_image_defocus_deblurring   # one of the two
    python Defocus_Deblurring/download_data.py --data train val                         # DPDD, to train and validate on
    python Defocus_Deblurring/download_data.py --data test                              # DPDD, to test on

generate_patches_dpdd.py cuts the frames of train and val into crops. No checksum of the dual-pixel weights is
published: their network is checked, and their SHA-256 printed.

The sets come from Google Drive as zip archives (`pip install 'gdown>=6.4'`), and are unpacked into
Defocus_Deblurring/Datasets: Downloads/DPDD/{train,val} and test/DPDD, each with inputL, inputR, inputC and target. If
Google Drive refuses, download the archive in a browser to the name given in the message, and repeat the command.

--force and the exit status are as in Motion_Deblurring/download_data.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Defocus_Deblurring.download_data'))

import argparse

from basicsr.data import download

FOLDER = 'Defocus_Deblurring'


def parser() -> argparse.ArgumentParser:
    return download.parser(FOLDER)


def main(args: argparse.Namespace) -> int:
    return download.main(args, FOLDER)
