"""What the programs that cut crops have in common."""

import sys

import numpy as np
import pytest
import written_images
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
    """`program(*arguments)` runs it on images of 16 bit; `program.files`: those."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['cut.py'])

    def run(*arguments):
        small = ['--datasets', 'sets', '--crop_size', '8', '--stride', '5', '--workers', '0']
        return cli.run(request.param, [*small, *ARGUMENTS.get(request.param, []), *arguments])

    run.files = [tmp_path / 'sets/Downloads' / name for name in PROGRAMS[request.param]]
    for path in run.files:
        write(path, image(13, 18, np.uint16))
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


def test_another_image_under_the_name_of_a_crop_stays(program, capsys):
    assert program() == 0
    path = next(program.folder.rglob('*.png'))
    write(path, image(8, 8))
    before = files(program.folder)
    assert written_images.refusal(capsys, program).startswith(f'{path}: differs from this crop of the frame; ')
    assert files(program.folder) == before


def test_all_damaged_images_are_named(program, capsys):
    for path in (program.files[0], program.files[-1]):
        path.write_bytes(path.read_bytes()[:-20])
    assert program() == 1
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    for path in (program.files[0], program.files[-1]):
        assert f'{path}: is damaged or cut short' in error


@pytest.mark.parametrize('program', [*PROGRAMS][:2], indirect=True)
def test_partners_of_another_size_are_refused(program, capsys):
    first, _, other, *_ = program.files
    write(other, image(13, 17, np.uint16))
    assert written_images.refusal(capsys, program) == (
        f'{other}: found 17x13; allowed: the size of its partner {first}, 18x13'
    )
