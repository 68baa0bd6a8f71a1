"""Downloads of all task folders, from a stand-in for Google Drive and from file URLs."""

import importlib
import sys
import threading
from functools import partial
from hashlib import sha256

import pytest
import stand_in_drive
import torch
from stand_in_drive import Drive, files, zipped
from tqdm import tqdm

from basicsr.archs.restormer_arch import Restormer
from basicsr.data import download
from basicsr.tasks import ARCHIVES, TASKS
from basicsr.utils import cli
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.remote import RemoteFile

said = partial(stand_in_drive.said, program='download_data.py')

PAIRS = ['input/2.png', 'input/10.jpg', 'target/2.png', 'target/10.png']
VIEWS = [f'{kind}/{name}.png' for kind in ('inputL', 'inputR', 'inputC') for name in ('1P2', '1P10')]
VIEWS += ['target/1P3.png', 'target/1P11.png']  # as in the original set
SCENES = [f'000{n}_S6/000{n}_{kind}_SRGB_010.PNG' for n in (1, 2) for kind in ('NOISY', 'GT')]
CROPS = [f'{kind}_crops/{name}.png' for kind in ('input', 'target') for name in ('1', '2')]
BLOCKS = ['ValidationNoisyBlocksSrgb.mat', 'ValidationGtBlocksSrgb.mat']
DND = ['info.mat', 'images_srgb/0001.mat', 'images_srgb/0002.mat']
FLAT = ['2.png', '10.tif']
LABELS = ['indoor_labels.npy', 'outdoor_labels.npy']

# Folder → word on the command line → (id on Google Drive, place, files, number as printed)
SETS = {
    'Motion_Deblurring': {
        'train': ('1zgALzrLCC_tcXKu_iHQTHukKUVT1aodI', 'train/GoPro', PAIRS, '2 pairs'),
        'GoPro': ('1k6DTSHu4saUgrGTYkkZXTptILyG9RRll', 'test/GoPro', PAIRS, '2 pairs'),
        'HIDE': ('1XRomKYJF1H92g1EuD06pCQe4o6HlwB7A', 'test/HIDE', PAIRS, '2 pairs'),
        'RealBlur_J': ('1Rb1DhhXmX7IXfilQ-zL9aGjQfAAvQTrW', 'test/RealBlur_J', PAIRS, '2 pairs'),
        'RealBlur_R': ('1glgeWXCy7Y0qWDc0MXBTUlZYJf8984hS', 'test/RealBlur_R', PAIRS, '2 pairs'),
    },
    'Deraining': {
        'Rain13K': ('14BidJeG4nSNuFNFDf99K-7eErCq4i47t', 'train/Rain13K', PAIRS, '2 pairs'),
        **{
            name: ('1P_-RAvltEoEhfT-9GrWRdpEi6NSswTs8', f'test/{name}', PAIRS, '2 pairs')
            for name in ('Test100', 'Rain100H', 'Rain100L', 'Test2800', 'Test1200')
        },
    },
    'Defocus_Deblurring': {
        'train': ('1bl5i1cDQNvkgVA_x37QdhvvFk1R80kfe', 'Downloads/DPDD/train', VIEWS, '8 files'),
        'val/DPDD': ('1KRAmBzluu-IG9-BOsuakB5rjY5_f-kiR', 'Downloads/DPDD/val', VIEWS, '8 files'),
        'DPDD': ('1dDWUQ_D93XGtcywoUcZE1HOXCV4EuLyw', 'test/DPDD', [*VIEWS, *LABELS], '8 files'),
    },
    'Denoising': {
        'train/SIDD': ('1UHjWZzLPGweA9ZczmV8lFSRcIxqiOVJw', 'Downloads/SIDD', SCENES, '2 pairs'),
        'val': ('1Fw6Ey1R-nCHN9WEpxv0MnMqxij-ECQYJ', 'val/SIDD', CROPS, '2 pairs'),
        'SIDD': ('11vfqV-lqousZTuAit1Qkqghiv_taY0KZ', 'test/SIDD', BLOCKS, '2 files'),
        'DND': ('1CYCDhaVxYYcXhSfEVDUwkvJDtGxeQ10G', 'test/DND', DND, '3 files'),
        'BSD400': ('1idKFDkAHJGAFDn1OyXZxsTbOSBx9GS8N', 'Downloads/BSD400', FLAT, '2 images'),
        'DIV2K': ('13wLWWXvFkuYYVZMMAYiMVdSA7iVEf2fM', 'Downloads/DIV2K', FLAT, '2 images'),
        'Flickr2K': ('1J8xjFCrVzeYccD-LF08H7HiIsmi8l2Wn', 'Downloads/Flickr2K', FLAT, '2 images'),
        'WaterlooED': ('19_mCE_GXfmE5yYsm-HEzuZQqmwMjPpJr', 'Downloads/WaterlooED', FLAT, '2 images'),
        **{
            name: ('1mwMLt-niNqcQpfN_ZduG9j4k6P_ZkOl0', f'test/{name}', FLAT, '2 images')
            for name in ('CBSD68', 'BSD68', 'Kodak', 'McMaster', 'Set12', 'Urban100')
        },
    },
}
CASES = [(folder, word) for folder, sets in SETS.items() for word in sets]


def run(folder, *arguments):
    return cli.run(f'{folder}.download_data', ['--output', 'out', '--data', *arguments])


def content(place, file):
    return f'{place} {file}'.encode()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['download_data.py'])
    monkeypatch.setattr(tqdm, '_lock', threading.RLock(), raising=False)
    return tmp_path


@pytest.fixture
def drive(here, monkeypatch):
    """Every set whose number of images is known has 2 of each kind."""
    drive = Drive()
    drive.install(monkeypatch)
    for folder, archives in ARCHIVES.items():
        small = [
            archive._replace(sets=tuple(one._replace(number=one.number and 2) for one in archive.sets))
            for archive in archives
        ]
        monkeypatch.setitem(ARCHIVES, folder, tuple(small))
    return drive


def archive_of(folder, drive_id, top, but=None):
    """The archive with that id: of several sets, each in a folder of its name. `but`: place → other files."""
    sets = {
        place: (but or {}).get(place, names)
        for owner, place, names, _ in SETS[folder].values()
        if owner == drive_id
    }
    return zipped(
        (f'{top}{place.split("/")[1] + "/" if len(sets) > 1 else ""}{name}', content(place, name))
        for place, names in sets.items()
        for name in names
    )


def serve(drive, folder, word, top='', names=None):
    """Puts the archive of a set on the drive, with other `names` of its files; returns its place and usual files."""
    drive_id, place, usual, _ = SETS[folder][word]
    drive.archives[drive_id] = archive_of(folder, drive_id, top, {place: usual if names is None else names})
    return place, usual


def test_the_table_is_that_of_the_published_downloads():
    numbers = {
        (folder, one.key): one.number
        for folder, archives in ARCHIVES.items()
        for archive in archives
        for one in archive.sets
    }
    assert len(numbers) == len(CASES)
    # The numbers of the authors or the original lists of files; no other number may lead to a refusal.
    assert {key: count for key, count in numbers.items() if key[0] != 'Motion_Deblurring' and count} == {
        ('Deraining', 'test/Test100'): 98,
        ('Deraining', 'test/Test2800'): 2800,
        ('Defocus_Deblurring', 'train/DPDD'): 350,
        ('Defocus_Deblurring', 'val/DPDD'): 74,
        ('Defocus_Deblurring', 'test/DPDD'): 76,
        ('Denoising', 'test/DND'): 50,
    }
    for task in TASKS.values():  # evaluate.py finds what is downloaded
        assert {f'test/{one.place}' for one in task.test_sets} <= {
            place for _, place, _, _ in SETS[task.folder].values()
        }


@pytest.mark.parametrize(('folder', 'word'), CASES)
@pytest.mark.parametrize('top', ['', 'some/where/else/'])
def test_every_set_is_found_anywhere_in_its_archive(here, drive, capsys, folder, word, top):
    place, names = serve(drive, folder, word, top)
    drive_id, *_, number = SETS[folder][word]
    assert run(folder, word) == 0
    expected = {f'out/{place}/{name}': content(place, name) for name in names}
    assert files(here) == expected
    assert said(capsys) == ([], f'{here}/out/{place} is complete: {number}\n')
    assert run(folder, word) == 0
    assert said(capsys) == ([], f'{here}/out/{place} exists already: {number}\n')
    assert files(here) == expected and drive.calls == [drive_id]


@pytest.mark.parametrize(
    ('folder', 'word', 'there'),
    [
        ('Defocus_Deblurring', 'DPDD', ['inputL/1.png']),
        ('Denoising', 'train/SIDD', ['scene/a_GT.png']),
        ('Denoising', 'SIDD', BLOCKS[:1]),
        ('Denoising', 'DND', ['info.mat', 'images_srgb/0003.mat']),
        ('Denoising', 'Kodak', ['deep/down/1.png']),
    ],
)
def test_a_wrong_set_is_replaced_by_force_alone(here, drive, capsys, folder, word, there):
    place, names = serve(drive, folder, word)
    for name in there:
        path = here / 'out' / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'mine')
    before = files(here)
    assert run(folder, word) == 1
    (error,) = said(capsys)[0]
    assert error.startswith(f'{here}/out/{place}: found ')
    assert error.endswith('; move the existing files, or replace them with --force')
    assert files(here) == before and drive.calls == []
    assert run(folder, word, '--force') == 0
    assert files(here) == {f'out/{place}/{name}': content(place, name) for name in names}


@pytest.mark.parametrize(
    ('folder', 'words', 'chosen'),
    [
        ('Motion_Deblurring', ['HIDE', 'test', 'train'], SETS['Motion_Deblurring']),
        ('Motion_Deblurring', ['GoPro', 'RealBlur_R', 'GoPro'], ['GoPro', 'RealBlur_R']),
        ('Deraining', ['test'], ['Test100', 'Rain100H', 'Rain100L', 'Test2800', 'Test1200']),
        ('Deraining', ['train', 'Rain100L'], ['Rain13K', 'Rain100L']),
        ('Defocus_Deblurring', ['val', 'train/DPDD', 'test'], ['train', 'val/DPDD', 'DPDD']),
        ('Denoising', ['train/SIDD', 'val/SIDD', 'SIDD', 'DND'], ['train/SIDD', 'val', 'SIDD', 'DND']),
        ('Denoising', ['train'], ['train/SIDD', 'BSD400', 'DIV2K', 'Flickr2K', 'WaterlooED']),
        ('Denoising', ['DIV2K', 'BSD68', 'Set12'], ['DIV2K', 'BSD68', 'Set12']),
    ],
)
def test_words_choose_groups_and_sets(here, drive, folder, words, chosen):
    for drive_id, *_ in SETS[folder].values():
        drive.archives[drive_id] = archive_of(folder, drive_id, 'top/')
    assert run(folder, *words) == 0
    expected = {f'out/{place}/{name}' for _, place, names, _ in map(SETS[folder].get, chosen) for name in names}
    assert files(here).keys() == expected
    assert len(drive.calls) == len({SETS[folder][word][0] for word in chosen})  # each archive once


@pytest.mark.parametrize(
    ('folder', 'word', 'names', 'words'),
    [
        ('Deraining', 'Rain13K', ['input/1.png', 'target/2.png'], 'found 1 (input/*) and 1 (target/*) files; '
         'allowed: 1 or more of each, with the same names'),
        ('Deraining', 'Test100', ['input/1.png', 'target/1.png'], 'allowed: 2 of each, with the same names'),
        ('Deraining', 'Rain100L', ['rain/1.png', 'clean/1.png'],
         'found 1 test/Rain100H/input/*.jpg, 1 test/Rain100H/input/*.png, 2 test/Rain100H/target/*.png, 1 test/Rain'),
        ('Deraining', 'Rain13K', ['rainy/1.png', 'clean/1.png'], 'found 1 test/clean/*.png, 1 test/rainy/*.png; '
         'allowed: one folder with input/* and target/*; nothing was unpacked'),
        ('Defocus_Deblurring', 'train', VIEWS[:-1], 'found 2 (inputL/*) and 2 (inputR/*) and 2 (inputC/*) and '
         '1 (target/*) files; allowed: 2 of each'),
        ('Denoising', 'train/SIDD', SCENES[:-1], 'found 2 (*/*NOISY*) and 1 (*/*GT*) files; allowed: 1 or more of '
         'each, with the same names'),
        ('Denoising', 'SIDD', BLOCKS[:-1], 'found 1 test/*.mat; allowed: one folder with '
         'ValidationNoisyBlocksSrgb.mat and ValidationGtBlocksSrgb.mat; '),
        ('Denoising', 'DND', DND[:-1], 'found 1 (info.mat) and 1 (images_srgb/*.mat) files; allowed: 2'),
        ('Denoising', 'DIV2K', ['HR/1.png', 'LR/1.png'], 'found 2 such folders: test/HR, test/LR; allowed: one folder'),
        ('Denoising', 'BSD400', ['readme.txt'], 'found 1 test/*.txt; allowed: one folder with images; '),
        ('Denoising', 'Kodak', [], '; allowed: one folder with images in a folder Kodak; nothing was unpacked'),
    ],
)  # fmt: skip
def test_another_layout_is_described(here, drive, capsys, folder, word, names, words):
    serve(drive, folder, word, 'test/', names)
    assert run(folder, word) == 1
    (error,) = said(capsys)[0]
    assert words in error
    assert [name for name in files(here) if not name.endswith('.zip')] == []


@pytest.mark.parametrize('names', [['a.png'], [f'{n}.bmp' for n in range(9)], ['1.png', '1.tif']])
def test_a_number_that_is_not_established_is_never_refused(here, drive, capsys, names):
    serve(drive, 'Denoising', 'Kodak', names=names)
    assert run('Denoising', 'Kodak') == 0
    assert said(capsys)[1] == f'{here}/out/test/Kodak is complete: {len(names)} images\n'


def test_a_folder_of_the_name_of_the_set_decides_between_several(here, drive):
    names = ['preview.png', 'DIV2K/1.png', '__MACOSX/._1.png', 'DIV2K/.hidden.png', 'DIV2K/Thumbs.db']
    serve(drive, 'Denoising', 'DIV2K', names=names)
    assert run('Denoising', 'DIV2K') == 0
    assert files(here).keys() == {'out/Downloads/DIV2K/1.png'}


def test_the_spurious_image_of_an_old_upload_is_left_out(here, drive, capsys):
    serve(drive, 'Deraining', 'Test2800', names=[*PAIRS, 'input/926_10(1).jpg'])
    assert run('Deraining', 'Test2800') == 0
    assert files(here).keys() == {f'out/test/Test2800/{name}' for name in PAIRS}
    assert 'left out Test2800/input/926_10(1).jpg, which has no partner' in said(capsys)[1]


@pytest.mark.parametrize('in_archive', [False, True])
def test_labels_are_not_required_and_stay(here, drive, in_archive):
    names = [*VIEWS, *LABELS] if in_archive else VIEWS
    place, _ = serve(drive, 'Defocus_Deblurring', 'DPDD', 'test/', names)
    label = f'out/{place}/indoor_labels.npy'
    (here / label).parent.mkdir(parents=True)
    (here / label).write_bytes(b'from elsewhere')
    assert run('Defocus_Deblurring', 'DPDD') == 0
    found = files(here)
    assert found.keys() == {label, *(f'out/{place}/{name}' for name in names)}
    assert found[label] == b'from elsewhere'


@pytest.mark.parametrize(('folder', 'word', 'scratch'), [
    ('Denoising', 'DIV2K', 'out/Downloads/.DIV2K.unpacked'),
    ('Denoising', 'DND', 'out/test/DND/.unpacked'),
])  # fmt: skip
def test_leftovers_of_a_kill_are_removed(here, drive, folder, word, scratch):
    place, names = serve(drive, folder, word)
    (here / scratch / 'new').mkdir(parents=True)
    (here / scratch / 'new' / 'half.png').touch()
    assert run(folder, word) == 0
    assert files(here).keys() == {f'out/{place}/{name}' for name in names}


@pytest.mark.parametrize(
    ('folder', 'word'), [('Denoising', 'DIV2K'), ('Denoising', 'DND'), ('Deraining', 'Rain13K')]
)
def test_a_link_to_another_folder_stays_one(here, drive, folder, word):
    place, names = serve(drive, folder, word)
    disk, link = here / 'disk', here / 'out' / place
    disk.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(disk)
    assert run(folder, word) == 0
    assert link.is_symlink() and files(disk).keys() == {*names}
    assert [path.name for path in here.iterdir() if path.name.startswith('.')] == []


# Weights of which no checksum is published

SMALL = {'dim': 4, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 1, 1]}
GREY = {**SMALL, 'inp_channels': 1, 'out_channels': 1, 'LayerNorm_type': 'BiasFree'}


@pytest.fixture
def unchecked(here, monkeypatch):
    """`unchecked(network, size=None)`: writes the file at the URL of weights of `GREY`."""
    path = here / 'server' / 'grey.pth'
    path.parent.mkdir()

    def unchecked(network, size=None, leave_out=None):
        torch.manual_seed(0)
        params = Restormer(**network).state_dict()
        params.pop(leave_out, None)
        save_checkpoint(path, params, None, 0)
        remote = RemoteFile(path.as_uri(), None, size)
        monkeypatch.setattr(download, 'published_files', lambda folder: {remote: GREY})
        return path

    return unchecked


def test_weights_without_a_checksum_are_checked_by_their_network(here, unchecked, capsys):
    data = unchecked(GREY).read_bytes()
    assert run('Denoising', 'weights') == 0
    told = f', but not verified: its SHA-256 is {sha256(data).hexdigest()}; none is published'
    out = f'{here}/out/grey.pth is complete{told}; its terms: https://github.com/swz30/Restormer\n'
    assert said(capsys) == ([], out)
    assert run('Denoising', 'weights') == 0
    assert said(capsys) == ([], f'{here}/out/grey.pth exists already, and is complete{told}\n')
    assert files(here / 'out') == {'grey.pth': data}


@pytest.mark.parametrize(
    ('network', 'size', 'leave_out', 'words'),
    [
        (SMALL, None, None, 'it is of another network: inp_channels 3 instead of 1, out_channels 3 instead of 1, '
         'LayerNorm_type "WithBias" instead of "BiasFree"'),
        ({**GREY, 'dim': 8}, None, None, 'it is of another network: dim 8 instead of 4'),
        (GREY, 1_000_000, None, ' bytes; allowed: 1,000,000'),
        (GREY, None, 'latent.0.attn.qkv.weight', 'missing in the file: latent.0.attn.qkv.weight'),
    ],
)  # fmt: skip
def test_other_weights_are_refused(here, unchecked, capsys, network, size, leave_out, words):
    served = unchecked(network, size, leave_out)
    assert run('Denoising', 'weights') == 1
    (error,) = said(capsys)[0]
    assert error.startswith(f'{served.as_uri()}: the download failed: ') and words in error
    assert files(here / 'out') == {}
    (here / 'out' / 'grey.pth').write_bytes(served.read_bytes())
    assert run('Denoising', 'weights') == 1
    (error,) = said(capsys)[0]
    assert words in error and error.endswith('; move it, or replace it with --force')


def test_one_of_several_files_is_chosen_by_its_stem(here, monkeypatch):
    """All networks of the table are those of their tasks."""
    got = []
    monkeypatch.setattr(download, 'get_weights', lambda remote, network, *_: got.append((remote.name, network)))
    name = 'gaussian_color_denoising_sigma25'
    assert run('Denoising', name, 'real_denoising') == 0
    bias_free = {'LayerNorm_type': 'BiasFree'}
    assert got == [('real_denoising.pth', bias_free), (f'{name}.pth', bias_free)]
    got.clear()
    assert run('Denoising', 'weights') == 0 and len(got) == 9
    grey = {'inp_channels': 1, 'out_channels': 1, **bias_free}
    assert dict(got)['gaussian_gray_denoising_sigma50.pth'] == grey
    got.clear()
    assert run('Defocus_Deblurring', 'dual_pixel_defocus_deblurring') == 0
    assert got == [('dual_pixel_defocus_deblurring.pth', {'inp_channels': 6, 'dual_pixel_task': True})]


@pytest.mark.parametrize('folder', SETS)
def test_help_lists_what_can_be_got(folder, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f'{folder}.download_data').parser().parse_args(['--help'])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (test,) = (words[1:] for words in lines if words[:1] == ['test'])
    assert test == [place.split('/')[1] for _, place, *_ in SETS[folder].values() if place.startswith('test/')]
