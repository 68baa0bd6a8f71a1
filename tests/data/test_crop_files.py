"""The programs that cut crops write what is missing; tests/motion_deblurring has the refusals that they share."""

import sys

import numpy as np
import pytest
from written_images import files, image, write

from basicsr.utils import cli

PROGRAMS = {  # program → files below Downloads
    'Defocus_Deblurring.generate_patches_dpdd': [
        f'DPDD/train/{kind}/{name}.png' for kind in ('inputC', 'inputL', 'inputR', 'target') for name in '12'
    ],
    'Denoising.generate_patches_sidd': [
        f'SIDD/{name}/{name}_{kind}.png' for kind in ('NOISY', 'GT') for name in '12'
    ],
    'Denoising.generate_patches_dfwb': ['DIV2K/1.png', 'BSD400/2.png'],
}
ARGUMENTS = {
    'Defocus_Deblurring.generate_patches_dpdd': ['--data', 'train'],
    'Denoising.generate_patches_dfwb': ['--sets', 'DIV2K', 'BSD400', '--max_whole', '1'],
}


@pytest.fixture(params=PROGRAMS)
def program(request, tmp_path, monkeypatch):
    """`program(*arguments)` runs it on images of 16 bit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['cut.py'])

    def run(*arguments):
        small = ['--datasets', 'sets', '--crop_size', '8', '--stride', '5', '--workers', '0']
        return cli.run(request.param, [*small, *ARGUMENTS.get(request.param, []), *arguments])

    for name in PROGRAMS[request.param]:
        write(tmp_path / 'sets/Downloads' / name, image(13, 18, np.uint16))
    run.folder = tmp_path / 'sets/train'
    return run


def test_repeating_writes_what_is_missing(program, capsys):
    assert program() == 0
    whole = files(program.folder)
    number = len(whole)
    assert number >= 8 and all(data[24] == 16 for data in whole.values())  # the depth in a PNG
    first, second, *_ = whole
    (program.folder / first).write_bytes(whole[first][:-5])  # cut short
    (program.folder / second).unlink()
    others = [path for path in program.folder.rglob('*.png') if path.name not in (first.split('/')[-1],)]
    before = {path: path.stat().st_ino for path in others}
    capsys.readouterr()
    assert program('--workers', '1') == 0
    assert files(program.folder) == whole
    assert {path: path.stat().st_ino for path in others} == before
    assert f' ({number - 2} of the {number} files existed already)\n' in capsys.readouterr().out
