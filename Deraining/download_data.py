"""Downloads the data sets and the published weights of deraining, and checks them.

    python Deraining/download_data.py --data weights            # 105 MB, from GitHub
    python Deraining/download_data.py --data train              # Rain13K, to train on
    python Deraining/download_data.py --data test               # Test100, Rain100H, Rain100L, Test2800, Test1200
    python Deraining/download_data.py --data Rain100L Test100   # some of the test sets, which are in one archive

The sets come from Google Drive as zip archives (`pip install 'gdown>=6.4'`), and are unpacked into
Deraining/Datasets: train/Rain13K/{input,target}, test/<set>/{input,target}. If Google Drive refuses, download the
archive in a browser to the name given in the message, and repeat the command.

--force and the exit status are as in Motion_Deblurring/download_data.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Deraining.download_data'))

import argparse

from basicsr.data import download

FOLDER = 'Deraining'


def parser() -> argparse.ArgumentParser:
    return download.parser(FOLDER)


def main(args: argparse.Namespace) -> int:
    return download.main(args, FOLDER)
