"""Motion_Deblurring/evaluate.py: sets, protocols, arguments and reports, on a few small images."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr import tasks
from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.inference import Restorer
from basicsr.metrics.aligned import alignment_converges, calculate_psnr_aligned, calculate_ssim_aligned
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim, calculate_ssim_3d
from basicsr.tasks import MOTION_DEBLURRING, PROTOCOLS
from basicsr.utils import cli
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.files import ROOT
from basicsr.utils.remote import RemoteFile

SCRIPT = ROOT / 'Motion_Deblurring' / 'evaluate.py'
COMPACT = ROOT / 'Motion_Deblurring' / 'pretrained_models' / 'motion_deblurring_compact.pth'
README = ROOT / 'Motion_Deblurring' / 'README.md'
NETWORK = ['--weights', str(COMPACT), '--device', 'cpu']
NAMES = ['2', '7', '10']  # in natural order
TEST_SETS = {one.name: one for one in MOTION_DEBLURRING.test_sets}


def picture(number, blur):
    rng = np.random.default_rng(number)
    scene = cv2.resize(rng.random((7, 9, 3)), (44, 36), interpolation=cv2.INTER_CUBIC)
    return np.rint(255 * np.clip(cv2.GaussianBlur(scene, (0, 0), blur), 0, 1)).astype(np.uint8)


def write_pairs(folder, flat=()):
    """input: blurred; target: sharp; images of the numbers in `flat` are of one colour in both."""
    for number in map(int, NAMES):
        for kind, blur in (('input', 3), ('target', 0.5)):
            pixels = picture(number, blur)
            if number in flat:
                pixels[:] = 90 if kind == 'input' else 120
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_png(folder / kind / f'{number}.png', pixels)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with the test sets GoPro and RealBlur_J in `data`, and GoPro restored in `restored`."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / 'data' / 'GoPro')
    write_pairs(tmp_path / 'data' / 'RealBlur_J', flat=(7,))
    (tmp_path / 'restored').mkdir()
    for name in NAMES:
        write_png(tmp_path / 'restored' / f'{name}.png', picture(int(name), 1.5))
    return tmp_path


def run(*arguments, data='data'):
    given = ['--data_dir', data, '--json', 'out.json', *map(str, arguments)]
    return cli.run('Motion_Deblurring.evaluate', given)


def written():
    return json.loads(Path('out.json').read_text())


def refusal(capsys, *arguments, status=2):
    """What the program prints on stderr before it ends with an error."""
    capsys.readouterr()
    assert run(*arguments) == status
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    return error


def rows(out, name):
    """The table of a set: first column → the others."""
    lines = out.split(f'\n{name}: ')[1].split('\n\n')[0].splitlines()[1:]
    return {first: others for first, *others in (re.split('  +', line) for line in lines)}


# --- what is measured ---------------------------------------------------------------------------------------


def gopro(image, target):
    return {
        'psnr': calculate_psnr(image, target),
        'ssim_3d': calculate_ssim_3d(image, target),
        'ssim_2d': calculate_ssim(image, target),
    }


def realblur(image, target):
    return {
        'psnr_aligned': calculate_psnr_aligned(image, target),
        'ssim_aligned': calculate_ssim_aligned(image, target),
        'psnr_y': calculate_psnr(image, target, test_y_channel=True),
        **gopro(image, target),
        'aligned': alignment_converges(image, target),
    }


def expected(protocol, folder, restored):
    """Figures of each image, from the files; `restored`: (name, blurred image) → result."""
    found = []
    for name in NAMES:
        lq, gt = (read_image(folder / kind / f'{name}.png').pixels for kind in ('input', 'target'))
        blurred = {f'input_{key}': value for key, value in protocol(lq, gt).items()}
        found.append({'name': name, **protocol(restored(name, lq), gt), **blurred})
    return found


def is_close(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys() and ours['name'] == theirs['name']
        numbers = ours.keys() - {'name'}
        assert {key: ours[key] for key in numbers} == pytest.approx(
            {key: theirs[key] for key in numbers}, rel=1e-6
        )


@pytest.mark.parametrize('place', ['.', 'link'])
def test_results_do_not_replace_the_images_of_the_set(here, capsys, place):
    (here / 'data' / 'GoPro' / 'input').rename(here / 'pairs')
    (here / 'data' / 'GoPro' / 'target').rename(here / 'target')
    (here / 'link').symlink_to(here)
    before = {path: path.read_bytes() for path in here.glob('*/*.png')}
    own = ['--input_dir', 'pairs', '--target_dir', 'target', '--save_dir', place]
    assert run(*NETWORK, *own) == 1
    assert 'which holds images of the set; allowed: another folder' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.glob('*/*.png')} == before


def test_network_on_all_sets_in_the_folder(here, capsys):
    assert run(*NETWORK, '--workers', 2, '--save_dir', 'saved') == 0
    out, error = capsys.readouterr()
    assert 'Traceback' not in error
    restorer = Restorer.from_checkpoint(COMPACT, 'cpu', 'fp32', tlc=False, fixed_strips=True)
    content = written()
    assert list(content['datasets']) == ['GoPro', 'RealBlur_J']
    for name, protocol in (('GoPro', gopro), ('RealBlur_J', realblur)):
        data = content['datasets'][name]
        is_close(data['images'], expected(protocol, here / 'data' / name, lambda _, lq: restorer(lq)))
        for key in data['mean']:
            values = [image[key] for image in data['images']]
            assert data['mean'][key] == pytest.approx(sum(values) / 3, rel=1e-12)
        assert data['images_available'] == 3
        for stem in NAMES:
            found = read_image(here / 'saved' / name / f'{stem}.png').pixels
            np.testing.assert_array_equal(
                found, restorer(read_image(here / 'data' / name / 'input' / f'{stem}.png').pixels)
            )
    assert content['datasets']['RealBlur_J']['not_aligned'] == {'input': 1, 'result': 1}
    assert [image['aligned'] for image in content['datasets']['RealBlur_J']['images']] == [True, False, True]
    assert content | {'datasets': 0} == {
        'limit': None,
        'weights': f'{COMPACT} (params)',
        'precision': 'fp32',
        'tlc': True,  # without effect on images smaller than its window
        'datasets': 0,
    }

    for name in ('HIDE', 'RealBlur_R'):
        assert (
            f'{name}: skipped, as {here / "data" / name / "input"} does not exist; python Motion_Deblurring/'
            in error
        )
    means = {name: data['mean'] for name, data in content['datasets'].items()}
    table = rows(out, 'GoPro')
    assert table[''] == ['input', 'result', 'Restormer, published', 'Restormer + TLC, published']
    ours = [f'{means["GoPro"][key]:.4f}' for key in ('input_psnr', 'psnr')]
    assert table['PSNR'] == [*ours, '32.92', '33.57']
    assert table['SSIM-3D'][2:] == ['0.961', '-'] and table['SSIM-2D'][2:] == ['-', '-']
    table = rows(out, 'RealBlur_J')
    assert table[''] == ['input', 'result', 'Restormer, published']
    assert table['PSNR, aligned'][1:] == [f'{means["RealBlur_J"]["psnr_aligned"]:.4f}', '28.96']
    assert table['PSNR of luma'][2] == '28.44' and table['PSNR'][2] == '-'
    assert table['images not aligned'] == ['1', '1', '-']


def test_images_restored_elsewhere(here, capsys):
    assert run('--datasets', 'gopro', '--restored_dir', 'restored') == 0
    wanted = expected(gopro, here / 'data' / 'GoPro', lambda name, _: picture(int(name), 1.5))
    is_close(written()['datasets']['GoPro']['images'], wanted)
    assert written()['restored_dir'] == str(here / 'restored') and 'weights' not in written()
    # A folder for each set; a set without one is skipped.
    (here / 'all').mkdir()
    (here / 'restored').rename(here / 'all' / 'GoPro')
    capsys.readouterr()
    assert run('--restored_dir', 'all') == 0
    is_close(written()['datasets']['GoPro']['images'], wanted)
    skipped = f'RealBlur_J: skipped, as {here / "all" / "RealBlur_J"} does not exist\n'
    assert skipped in capsys.readouterr().err
    assert run('--datasets', 'GoPro', 'RealBlur_J', '--restored_dir', 'all') == 1  # it was asked for


def test_saved_results_have_the_same_figures(here):
    assert run(*NETWORK, '--datasets', 'GoPro', '--save_dir', 'saved', '--limit', 2) == 0
    once = written()['datasets']
    assert run('--datasets', 'GoPro', '--restored_dir', 'saved', '--limit', 2) == 0
    assert written()['datasets'] == once
    assert [image['name'] for image in once['GoPro']['images']] == NAMES[:2]


@pytest.mark.parametrize('protocol', ['realblur', None])
def test_own_pairs(here, capsys, protocol):
    folder = here / 'data' / 'GoPro'
    given = ['--input_dir', 'data/GoPro/input', '--target_dir', folder / 'target']
    assert run(*given, *NETWORK, *(['--protocol', protocol] if protocol else [])) == 0
    restorer = Restorer.from_checkpoint(COMPACT, 'cpu', 'fp32', tlc=False, fixed_strips=True)
    measure = realblur if protocol == 'realblur' else gopro
    found = written()['datasets']['pairs']
    is_close(found['images'], expected(measure, folder, lambda _, lq: restorer(lq)))
    assert (found['protocol'], found['published']) == (protocol or 'gopro', {})
    assert rows(capsys.readouterr().out, 'pairs')[''] == ['input', 'result']


def test_deep_images_are_measured_at_their_depth(here):
    folder = here / 'deep'
    for kind in ('input', 'target', 'restored'):
        (folder / kind).mkdir(parents=True)
    deep = {'input': 3, 'target': 0.5, 'restored': 1.5}
    pixels = {kind: picture(2, blur).astype(np.uint16) * 257 + 100 for kind, blur in deep.items()}
    pixels['restored'] = picture(2, 1.5)  # with 8 bits
    for kind, image in pixels.items():
        write_png(folder / kind / 'a.png', image)
    given = ['--input_dir', 'deep/input', '--target_dir', 'deep/target', '--restored_dir', 'deep/restored']
    assert run(*given) == 0
    (image,) = written()['datasets']['pairs']['images']
    restored = pixels['restored'].astype(np.uint16) * 257
    assert image['psnr'] == pytest.approx(calculate_psnr(restored, pixels['target']), rel=1e-9)
    assert image['input_psnr'] == pytest.approx(calculate_psnr(pixels['input'], pixels['target']), rel=1e-9)


def test_default_tlc_follows_the_weights(here):
    """On for the shipped weights, also under another name; off for weights that do not mention it."""
    copied, others = here / 'copied.pth', here / 'others.pth'
    copied.write_bytes(COMPACT.read_bytes())
    torch.save({'params': load_weights(COMPACT).params}, others)
    for weights, tlc in ((COMPACT, True), (copied, True), (others, False)):
        given = ['--weights', weights, '--device', 'cpu', '--datasets', 'GoPro', '--limit', 1]
        assert run(*given) == 0
        assert written()['tlc'] is tlc


def test_param_key_chooses_the_weights(here):
    params = load_weights(COMPACT).params
    torch.save(
        {'params': params, 'ema': {**params, 'output.weight': params['output.weight'] * 0}}, here / 'a.pth'
    )
    given = ['--weights', here / 'a.pth', '--device', 'cpu', '--datasets', 'GoPro', '--limit', 1]
    for key in ([], ['--param_key', 'params']):
        assert run(*given, *key) == 0
        assert written()['weights'] == f'{here / "a.pth"} ({"params" if key else "ema"})'
        means = written()['datasets']['GoPro']['mean']
        assert (means['psnr'] == means['input_psnr']) == (not key)


def test_tlc_and_limit_are_reported(here, capsys):
    assert run(*NETWORK, '--datasets', 'GoPro', '--tlc', 16, '--limit', 1) == 0
    out = capsys.readouterr().out
    assert f'weights: {COMPACT} (params)\ndevice: cpu, fp32, TLC\n' in out
    assert '\nGoPro: 1 of 3 images only; the published values are for the full set\n' in out
    assert (written()['tlc'], written()['limit']) == (16, 1)
    with_tlc = written()['datasets']['GoPro']['mean']['psnr']
    assert run(*NETWORK, '--no-tlc', '--datasets', 'GoPro', '--limit', 1) == 0
    assert f'weights: {COMPACT} (params)\ndevice: cpu, fp32\n' in capsys.readouterr().out
    assert written()['tlc'] is False
    assert with_tlc != written()['datasets']['GoPro']['mean']['psnr']


# --- failures -----------------------------------------------------------------------------------------------


def test_an_image_that_fails_is_named_and_left_out(here, capsys):
    (here / 'data' / 'RealBlur_J' / 'input' / '7.png').write_bytes(b'none')
    assert run(*NETWORK) == 1
    out, error = capsys.readouterr()
    (sentence,) = [line for line in error.splitlines() if line.startswith('not measured: ')]
    assert 'input/7.png: is not an image; allowed: ' in sentence
    assert '\nGoPro: 3 images\n' in out
    assert '\nRealBlur_J: 2 of 3 images only; the published values are for the full set\n' in out
    found = written()['datasets']['RealBlur_J']
    assert [image['name'] for image in found['images']] == ['2', '10']
    assert found['mean']['psnr'] == np.mean([image['psnr'] for image in found['images']])
    assert found['not_measured'] == [sentence.removeprefix('not measured: ')]
    assert 'not_measured' not in written()['datasets']['GoPro']


def test_a_set_without_any_measurable_image(here, capsys):
    for path in (here / 'data' / 'GoPro' / 'input').iterdir():
        path.write_bytes(b'none')
    assert run(*NETWORK, '--limit', '2') == 1
    out, error = capsys.readouterr()
    assert error.count('not measured: ') == 2 and 'GoPro' not in out
    assert list(written()['datasets']) == ['RealBlur_J']


@pytest.mark.parametrize('problem', ['disk', 'Ctrl-C'])
def test_figures_before_a_problem_are_written(here, capsys, monkeypatch, problem):
    if problem == 'disk':
        (here / 'saved' / 'GoPro' / '7.png').mkdir(parents=True)
    else:
        restore = Restorer.restore

        def interrupted(*given):
            if (here / 'saved' / 'GoPro' / '2.png').exists():
                raise KeyboardInterrupt
            return restore(*given)

        monkeypatch.setattr(Restorer, 'restore', interrupted)
    given = ['--datasets', 'GoPro', '--save_dir', 'saved', '--workers', 1]
    assert run(*NETWORK, *given) == (1 if problem == 'disk' else 130)
    out, error = capsys.readouterr()
    if problem == 'disk':
        assert '7.png: cannot be written: ' in error
        assert '\nGoPro: 1 of 3 images only; the published values are for the full set\n' in out
        assert [image['name'] for image in written()['datasets']['GoPro']['images']] == ['2']
    assert 'Traceback' not in error


# --- refusals -----------------------------------------------------------------------------------------------


def test_no_set_at_all(here, capsys):
    said = refusal(capsys, '--data_dir', 'nowhere')
    for one in MOTION_DEBLURRING.test_sets:
        assert (
            f'{one.name}: skipped, as {here / "nowhere" / one.name / "input"} does not exist; '
            f'python Motion_Deblurring/download_data.py --data {one.name} downloads it\n'
        ) in said
    assert said.endswith('no test set to measure on\n')


@pytest.mark.parametrize('kinds', [(), ('input',), ('target',)])
def test_a_requested_set_without_both_folders_is_skipped_and_a_failure(here, capsys, kinds):
    for kind in kinds:
        (here / 'data' / 'HIDE' / kind).mkdir(parents=True)
    assert run('--restored_dir', here / 'data' / 'GoPro' / 'target', '--datasets', 'HIDE', 'GoPro') == 1
    absent = 'target' if kinds == ('input',) else 'input'
    skipped = f'HIDE: skipped, as {here / "data" / "HIDE" / absent} does not exist; python Motion_Deblurring'
    assert skipped in capsys.readouterr().err
    assert list(written()['datasets']) == ['GoPro']


def test_equal_images_have_null_for_a_psnr_in_json(here):
    assert run('--restored_dir', here / 'data' / 'GoPro' / 'target', '--datasets', 'GoPro') == 0
    text = (here / 'out.json').read_text()
    found = json.loads(text, parse_constant=pytest.fail)['datasets']['GoPro']
    assert found['mean']['psnr'] is None and found['mean']['ssim_3d'] == 1
    assert found['images'][0]['psnr'] is None and found['images'][0]['input_psnr'] > 10


def test_images_without_a_partner_are_named_before_any_work(here, capsys):
    target = here / 'data' / 'RealBlur_J' / 'target'
    (target / '7.png').rename(target / '8.png')
    said = refusal(capsys, *NETWORK, status=1)
    assert '1 image has no partner of the same name: ' in said and 'RealBlur_J/input/7.png' in said
    assert '1 image has no partner of the same name: ' in said and 'RealBlur_J/target/8.png' in said
    assert not Path('out.json').exists()


def test_restored_images_that_are_missing_or_too_many(here, capsys):
    (here / 'restored' / '7.png').rename(here / 'restored' / 'other.png')
    given = ['--datasets', 'GoPro', '--restored_dir', 'restored']
    assert refusal(capsys, *given, status=1).endswith(
        f'{here / "restored"}: found restored images with other names than the clean ones; missing: 7; unknown: other\n'
    )
    (here / 'restored' / 'other.png').unlink()
    assert 'missing: 7; unknown: none\n' in refusal(capsys, *given, status=1)


def test_restored_images_of_another_size(here, capsys):
    write_png(here / 'restored' / '7.png', picture(7, 1)[:-1])
    said = refusal(capsys, '--datasets', 'GoPro', '--restored_dir', 'restored', status=1)
    assert said.endswith('restored/7.png: found 44x35; allowed: the size of its target, 44x36\n')


WRONG = {
    'one folder': (['--input_dir', 'a'], 'found one of --input_dir and --target_dir; allowed: both or neither'),
    'both kinds': (
        ['--input_dir', 'a', '--target_dir', 'b', '--datasets', 'HIDE'],
        '--datasets: found together with --input_dir; allowed: one of them',
    ),
    'unknown set': (['--datasets', 'REDS'], "argument --datasets: invalid choice: 'reds'"),
    'protocol': (['--protocol', 'realblur'], '--protocol: allowed with --input_dir only'),
    'nothing is restored': (
        ['--restored_dir', 'a', '--weights', 'b'],
        '--restored_dir: found with --weights; allowed: without',
    ),
    'no TLC where nothing is restored': (
        ['--restored_dir', 'a', '--no-tlc'],
        '--restored_dir: found with --no-tlc',
    ),
    'workers': (['--workers', '0'], 'argument --workers: found 0; allowed: 1 or more'),
    'limit': (['--limit', '0'], 'argument --limit: found 0; allowed: 1 or more'),
    'json': (['--json', 'no/out.json'], 'no/out.json cannot be written'),
    'json in a file': (['--json', f'restored/{NAMES[0]}.png/x'], 'cannot be written (Not a directory)'),
    'json as a folder': (['--json', 'data'], '--json: found the folder '),
    'weights': (['--weights', 'none.pth'], 'none.pth: no such file'),
    'tlc': ([*NETWORK, '--tlc', '9'], 'tlc: found 9; allowed: a window of a positive multiple of 8'),
    'precision': ([*NETWORK, '--precision', 'fp64'], "precision: found 'fp64'; allowed: auto, fp32"),
}


@pytest.mark.parametrize(('arguments', 'message'), WRONG.values(), ids=list(WRONG))
def test_wrong_arguments(here, capsys, arguments, message):
    assert message in refusal(capsys, *arguments)
    assert not Path('out.json').exists()


def test_missing_published_weights_are_explained(here, capsys, monkeypatch):
    monkeypatch.setattr(tasks, 'ROOT', here)
    said = refusal(capsys)
    assert (
        'motion_deblurring.pth: found no published weights; python Motion_Deblurring/download_data.py ' in said
    )
    assert '--data weights downloads https://github.com/' in said and 'others, such as /' in said
    assert 'motion_deblurring_compact.pth' in said


def test_own_pairs_use_the_weights_of_the_demo(here, capsys, monkeypatch):
    absent = replace(MOTION_DEBLURRING, weights={'': RemoteFile('https://x/absent.pth')})
    monkeypatch.setitem(tasks.TASKS, 'motion_deblurring', absent)
    given = ['--input_dir', 'data/GoPro/input', '--target_dir', 'data/GoPro/target', '--device', 'cpu']
    assert run(*given) == 0
    assert f'weights: {COMPACT}' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='signals')
def test_sigterm_ends_the_command(here):
    for kind in ('input', 'target'):
        for name in range(20, 28):
            write_png(here / 'data' / 'GoPro' / kind / f'{name}.png', np.tile(picture(name, 1), (12, 12, 1)))
    given = ['--data_dir', 'data', '--datasets', 'GoPro', '--json', 'out.json']
    command = [sys.executable, SCRIPT, *NETWORK, *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith('device: '):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM and 'Traceback' not in out
    if Path('out.json').exists():  # figures measured until then
        assert len(written()['datasets']['GoPro']['images']) < 11


# --- published figures --------------------------------------------------------------------------------------


def published_table():
    """(method, set) → the figures of the README's table, in the order of its cells."""
    lines = (
        README.read_text(encoding='utf-8').split('## 4. Published figures')[1].split('\n## ')[0].splitlines()
    )
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    columns = [column.replace('-', '_') for column in cells[0]]
    return {
        (row[0], column): [float(figure) for figure in cell.split('/') if figure.strip()]
        for row in cells[2:]
        for column, cell in zip(columns, row, strict=True)
        if column in TEST_SETS
    }


def test_published_figures_equal_the_readme_and_are_in_the_protocols():
    table = published_table()
    assert {column for _, column in table} == TEST_SETS.keys()
    for name, one in TEST_SETS.items():
        keys = [figure.key for figure in PROTOCOLS[one.protocol].figures]
        for method in ('Restormer', 'Restormer + TLC'):
            figures = one.published.get(method, {})
            assert [figures[key] for key in keys[:2] if key in figures] == table[method, name], (method, name)
            assert figures.keys() <= {*keys}


def test_published_figures_without_alignment_equal_the_readme():
    text = ' '.join(README.read_text(encoding='utf-8').split())
    luma = {name: one.published['Restormer'].get('psnr_y') for name, one in TEST_SETS.items()}
    assert f'{luma["RealBlur_J"]} (J) and {luma["RealBlur_R"]} (R)' in text
