"""Downloads the data sets and the published weights of motion deblurring, and checks them.

    python Motion_Deblurring/download_data.py --data weights             # 105 MB, from GitHub
    python Motion_Deblurring/download_data.py --data train               # GoPro, to train on
    python Motion_Deblurring/download_data.py --data test                # GoPro, HIDE, RealBlur_J, RealBlur_R
    python Motion_Deblurring/download_data.py --data GoPro RealBlur_J    # some of the test sets

The sets come from Google Drive as zip archives (`pip install 'gdown>=6.4'`), and are unpacked into
Motion_Deblurring/Datasets: train/GoPro/{input,target}, test/<set>/{input,target}. If Google Drive refuses, download
the archive in a browser to the name given in the message, and repeat the command.

Valid files are kept; invalid ones are replaced only with --force. A file or a set gets its final name when it is
complete; repeating the command resumes. Exit status: 0 if everything is complete, 1 if not (each failure is named), 2
on a wrong argument or without gdown, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('Motion_Deblurring.download_data'))

import argparse

from basicsr.data import download

FOLDER = 'Motion_Deblurring'


def parser() -> argparse.ArgumentParser:
    return download.parser(FOLDER)


def main(args: argparse.Namespace) -> int:
    return download.main(args, FOLDER)
