"""Motion_Deblurring/evaluate.py: what it measures, on which pairs, and what it says, on a few small images."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
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
from basicsr.metrics.aligned import calculate_aligned
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim, calculate_ssim_3d
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.files import ROOT

sys.path.insert(0, str(ROOT))  # the processes that measure import it by its name

from Motion_Deblurring import evaluate

COMPACT = ROOT / 'Motion_Deblurring' / 'pretrained_models' / 'motion_deblurring_compact.pth'
README = ROOT / 'Motion_Deblurring' / 'README.md'
NETWORK = ['--weights', str(COMPACT), '--device', 'cpu']
NAMES = ['2', '7', '10']  # in natural order


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


class Here:
    """A pool of no processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def shutdown(self, cancel_futures):
        pass

    def submit(self, function, *given):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*given))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Here)


@pytest.fixture(params=[False, True], ids=['in turn', 'threads'])
def threads(request, monkeypatch):
    """As on a GPU: of the device 'meta' it is only said that it does the work."""
    staged = evaluate.in_stages
    if request.param:
        monkeypatch.setattr(evaluate, 'in_stages', lambda *given: staged(*given[:-1], torch.device('meta')))


def run(*arguments, data='data'):
    return evaluate.main(['--data_dir', data, '--json', 'out.json', *map(str, arguments)])


def written():
    return json.loads(Path('out.json').read_text())


def refusal_with_output(capsys, *arguments, status=1):
    """What is said on standard output and on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == status
    out, error = capsys.readouterr()
    assert 'Traceback' not in error
    return out, error


def refusal(capsys, *arguments, status=2):
    """What is said on standard error."""
    return refusal_with_output(capsys, *arguments, status=status)[1]


def complaints(capsys, *arguments):
    """Of images that are left out, on standard error."""
    capsys.readouterr()
    assert run(*arguments) == 1
    return capsys.readouterr().err


def rows(out, name):
    """The table of a set: the first column → the others."""
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
    psnr, ssim, converged = calculate_aligned(image, target)
    return {
        'psnr_aligned': psnr,
        'ssim_aligned': ssim,
        'psnr_y': calculate_psnr(image, target, test_y_channel=True),
        **gopro(image, target),
        'aligned': converged,
    }


def expected(protocol, folder, restored):
    """Of each image, from the files; `restored`: of a name, and of the blurred image."""
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


def test_a_network_on_all_sets_that_are_there(here, capsys):
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
        assert data['images_there'] == 3
        for stem in NAMES:
            found = read_image(here / 'saved' / name / f'{stem}.png').pixels
            np.testing.assert_array_equal(
                found, restorer(read_image(here / 'data' / name / 'input' / f'{stem}.png').pixels)
            )
    assert content['datasets']['RealBlur_J']['not_aligned'] == {'blurred': 1, 'result': 1}
    assert [image['aligned'] for image in content['datasets']['RealBlur_J']['images']] == [True, False, True]
    assert content | {'datasets': 0} == {
        'limit': None,
        'weights': f'{COMPACT} (params)',
        'precision': 'fp32',
        'tlc': True,  # images narrower than its window are as without
        'datasets': 0,
    }

    for name in ('HIDE', 'RealBlur_R'):
        assert f'{name}: skipped, as {here / "data" / name} is not there; python Motion_Deblurring/' in error
    means = {name: data['mean'] for name, data in content['datasets'].items()}
    table = rows(out, 'GoPro')
    assert table[''] == ['blurred', 'result', 'Restormer, published', 'Restormer + TLC, published']
    ours = [f'{means["GoPro"][key]:.4f}' for key in ('input_psnr', 'psnr')]
    assert table['PSNR'] == [*ours, '32.92', '33.57']
    assert table['SSIM-3D'][2:] == ['0.961', '-'] and table['SSIM-2D'][2:] == ['-', '-']
    table = rows(out, 'RealBlur_J')
    assert table[''] == ['blurred', 'result', 'Restormer, published']
    assert table['PSNR, aligned'][1:] == [f'{means["RealBlur_J"]["psnr_aligned"]:.4f}', '28.96']
    assert table['PSNR of luma'][2] == '28.44' and table['PSNR'][2] == '-'
    assert table['images not aligned'] == ['1', '1', '-']


@pytest.mark.parametrize('network', [True, False])
def test_figures_do_not_depend_on_the_number_of_processes(here, capsys, network):
    given = NETWORK if network else ['--datasets', 'GoPro', '--restored_dir', 'restored']
    texts = []
    for workers in (1, 2):
        assert run(*given, '--workers', workers) == 0
        texts.append((Path('out.json').read_bytes(), capsys.readouterr().out))
    assert texts[0] == texts[1]


def test_images_restored_elsewhere(here, capsys, at_once):
    assert run('--datasets', 'gopro', '--restored_dir', 'restored') == 0
    wanted = expected(gopro, here / 'data' / 'GoPro', lambda name, _: picture(int(name), 1.5))
    is_close(written()['datasets']['GoPro']['images'], wanted)
    assert written()['restored_dir'] == 'restored' and 'weights' not in written()
    # A folder for each set; a set without one is skipped.
    (here / 'all').mkdir()
    (here / 'restored').rename(here / 'all' / 'GoPro')
    capsys.readouterr()
    assert run('--restored_dir', 'all') == 0
    is_close(written()['datasets']['GoPro']['images'], wanted)
    said = capsys.readouterr().err
    assert f'RealBlur_J: skipped, as {here / "all" / "RealBlur_J"} is not there\n' in said
    assert run('--datasets', 'GoPro', 'RealBlur_J', '--restored_dir', 'all') == 1  # it was asked for


@pytest.mark.usefixtures('threads')
def test_what_was_saved_can_be_measured_again(here, at_once):
    assert run(*NETWORK, '--datasets', 'GoPro', '--save_dir', 'saved', '--limit', 2) == 0
    once = written()['datasets']
    assert run('--datasets', 'GoPro', '--restored_dir', 'saved', '--limit', 2) == 0
    assert written()['datasets'] == once
    assert [image['name'] for image in once['GoPro']['images']] == NAMES[:2]


@pytest.mark.parametrize('protocol', ['gopro', 'realblur', None])
def test_pairs_of_ones_own(here, capsys, at_once, protocol):
    folder = here / 'data' / 'GoPro'
    given = ['--input_dir', 'data/GoPro/input', '--target_dir', folder / 'target']
    assert run(*given, *NETWORK, *(['--protocol', protocol] if protocol else [])) == 0
    restorer = Restorer.from_checkpoint(COMPACT, 'cpu', 'fp32', tlc=False, fixed_strips=True)
    measure = realblur if protocol == 'realblur' else gopro
    found = written()['datasets']['pairs']
    is_close(found['images'], expected(measure, folder, lambda _, lq: restorer(lq)))
    assert (found['protocol'], found['published']) == (protocol or 'gopro', {})
    assert rows(capsys.readouterr().out, 'pairs')[''] == ['blurred', 'result']


def test_deep_images_are_measured_at_their_depth(here, at_once):
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


def test_tlc_is_by_default_what_it_is_in_the_demo(here, at_once):
    """On with the shipped weights, also under another name, and off with those that do not say so."""
    copied, others = here / 'copied.pth', here / 'others.pth'
    copied.write_bytes(COMPACT.read_bytes())
    torch.save({'params': load_weights(COMPACT).params}, others)
    for weights, tlc in ((COMPACT, True), (copied, True), (others, False)):
        given = ['--weights', weights, '--device', 'cpu', '--datasets', 'GoPro', '--limit', 1]
        assert run(*given) == 0
        assert written()['tlc'] is tlc


def test_tlc_and_the_limit_are_said(here, capsys, at_once):
    assert run(*NETWORK, '--datasets', 'GoPro', '--tlc', 16, '--limit', 1) == 0
    out = capsys.readouterr().out
    assert f'weights: {COMPACT} (params)\ndevice: cpu, fp32, TLC\n' in out
    assert '\nGoPro: the first 1 of 3 images alone (--limit); the published figures are of all\n' in out
    assert (written()['tlc'], written()['limit']) == (16, 1)
    with_tlc = written()['datasets']['GoPro']['mean']['psnr']
    assert run(*NETWORK, '--no-tlc', '--datasets', 'GoPro', '--limit', 1) == 0
    assert f'weights: {COMPACT} (params)\ndevice: cpu, fp32\n' in capsys.readouterr().out
    assert written()['tlc'] is False
    assert with_tlc != written()['datasets']['GoPro']['mean']['psnr']
    assert run(*NETWORK, '--datasets', 'GoPro', '--limit', 9) == 0
    assert '\nGoPro: 3 images\n' in capsys.readouterr().out


# --- what cannot be measured --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (lambda path: path.write_bytes(b'none'), 'input/7.png: is empty, cut short, or not an image'),
        (lambda path: write_png(path, picture(7, 1)[:-1]), 'allowed: the size of its partner'),
    ],
)
@pytest.mark.usefixtures('threads')
def test_an_image_that_cannot_be_used_is_named_and_left_out(here, capsys, at_once, spoil, said):
    spoil(here / 'data' / 'RealBlur_J' / 'input' / '7.png')
    assert run(*NETWORK) == 1
    out, error = capsys.readouterr()
    (sentence,) = [line for line in error.splitlines() if line.startswith('not measured: ')]
    assert said in sentence, sentence
    assert '\nGoPro: 3 images\n' in out
    assert '\nRealBlur_J: 2 of 3 images alone; the published figures are of all\n' in out
    found = written()['datasets']['RealBlur_J']
    assert [image['name'] for image in found['images']] == ['2', '10']
    assert found['mean']['psnr'] == np.mean([image['psnr'] for image in found['images']])
    assert found['not_measured'] == [sentence.removeprefix('not measured: ')]
    assert 'not_measured' not in written()['datasets']['GoPro']


def test_a_set_of_which_nothing_can_be_measured(here, capsys, at_once):
    for path in (here / 'data' / 'GoPro' / 'input').iterdir():
        path.write_bytes(b'none')
    assert run(*NETWORK, '--limit', '2') == 1
    out, error = capsys.readouterr()
    assert error.count('not measured: ') == 2 and 'GoPro' not in out
    assert list(written()['datasets']) == ['RealBlur_J']


@pytest.mark.usefixtures('threads')
def test_what_is_done_is_said_when_a_result_cannot_be_written(here, capsys, at_once):
    (here / 'saved' / 'GoPro' / '7.png').mkdir(parents=True)
    said = refusal_with_output(capsys, *NETWORK, '--datasets', 'GoPro', '--save_dir', 'saved')
    assert '7.png cannot be written: ' in said[1]
    assert '\nGoPro: 1 of 3 images alone; the published figures are of all\n' in said[0]
    assert [image['name'] for image in written()['datasets']['GoPro']['images']] == ['2']


# --- what is refused ----------------------------------------------------------------------------------------


def test_nothing_there(here, capsys):
    said = refusal(capsys, '--data_dir', 'nowhere')
    for name in evaluate.TEST_SETS:
        assert (
            f'{name}: skipped, as {here / "nowhere" / name} is not there; '
            f'python Motion_Deblurring/download_data.py --data {name} gets it\n'
        ) in said
    assert said.endswith('there is nothing to measure on\n')


def test_a_set_that_was_asked_for_and_is_not_there(here, capsys, at_once):
    assert run(*NETWORK, '--datasets', 'HIDE', 'GoPro') == 1
    out, error = capsys.readouterr()
    assert 'HIDE: skipped, as ' in error and 'GoPro: 3 images' in out


@pytest.mark.parametrize('kinds', [(), ('input',), ('target',)])
def test_a_folder_without_both_kinds_is_no_set(here, capsys, at_once, kinds):
    (here / 'data' / 'HIDE').mkdir()
    for kind in kinds:
        (here / 'data' / 'HIDE' / kind).mkdir()
    assert run('--restored_dir', here / 'data' / 'GoPro' / 'target', '--datasets', 'HIDE', 'GoPro') == 1
    absent = 'target' if kinds == ('input',) else 'input'
    error = capsys.readouterr().err
    assert (
        f'HIDE: skipped, as {here / "data" / "HIDE" / absent} is not there; python Motion_Deblurring' in error
    )
    assert list(written()['datasets']) == ['GoPro']


def test_equal_images_have_null_for_a_psnr_in_json(here, at_once):
    assert run('--restored_dir', here / 'data' / 'GoPro' / 'target', '--datasets', 'GoPro') == 0
    text = (here / 'out.json').read_text()
    found = json.loads(text, parse_constant=pytest.fail)['datasets']['GoPro']
    assert found['mean']['psnr'] is None and found['mean']['ssim_3d'] == 1
    assert found['images'][0]['psnr'] is None and found['images'][0]['input_psnr'] > 10


@pytest.mark.parametrize('name', ['GoPro', 'RealBlur_J'])
def test_images_without_a_partner_are_named_before_any_work(here, capsys, name):
    target = here / 'data' / name / 'target'
    (target / '7.png').rename(target / '8.png')
    said = refusal(capsys, *NETWORK, status=1)
    assert '1 degraded image has no partner of the same name: ' in said and f'{name}/input/7.png' in said
    assert '1 clean image has no partner of the same name: ' in said and f'{name}/target/8.png' in said
    assert not Path('out.json').exists()


def test_restored_images_that_are_missing_or_too_many(here, capsys):
    (here / 'restored' / '7.png').rename(here / 'restored' / 'other.png')
    given = ['--datasets', 'GoPro', '--restored_dir', 'restored']
    assert refusal(capsys, *given, status=1).endswith(
        f'{here / "restored"}: 1 restored image is missing: 7; 1 restored image is without a partner of the same '
        'name: other\n'
    )
    (here / 'restored' / 'other.png').unlink()
    (here / 'restored' / '2.png').unlink()
    assert '2 restored images are missing: 2, 7\n' in refusal(capsys, *given, status=1)


def test_restored_images_of_another_size(here, capsys, at_once):
    write_png(here / 'restored' / '7.png', picture(7, 1)[:-1])
    said = complaints(capsys, '--datasets', 'GoPro', '--restored_dir', 'restored')
    assert said.endswith('restored/7.png: found 44x35; allowed: the size of its target, 44x36\n')


def test_images_too_small_to_be_measured(here, capsys, at_once):
    for kind in ('input', 'target'):
        write_png(here / 'data' / 'GoPro' / kind / '7.png', picture(7, 1)[:9])
    said = complaints(capsys, *NETWORK, '--datasets', 'GoPro')
    assert 'GoPro/input/7.png: ' in said and 'allowed: at least 11' in said


WRONG = {
    'one folder': (['--input_dir', 'a'], 'found one of --input_dir and --target_dir; allowed: both or neither'),
    'both kinds': (
        ['--input_dir', 'a', '--target_dir', 'b', '--datasets', 'HIDE'],
        '--datasets: found together with --input_dir; allowed: one of them',
    ),
    'unknown set': (['--datasets', 'REDS'], 'found REDS; allowed: GoPro, HIDE, RealBlur_J, RealBlur_R'),
    'protocol': (['--protocol', 'realblur'], '--protocol: found without --input_dir'),
    'nothing is restored': (
        ['--restored_dir', 'a', '--tlc', '--weights', 'b'],
        '--restored_dir: found --weights, --tlc beside it; allowed: without',
    ),
    'no TLC where nothing is restored': (
        ['--restored_dir', 'a', '--no-tlc'],
        '--restored_dir: found --no-tlc beside it; allowed: without',
    ),
    'workers': (['--workers', '0'], '--workers: found 0; allowed: 1 or more'),
    'limit': (['--limit', '0'], '--limit: found 0; allowed: 1 or more'),
    'json': (['--json', 'no/folder.json'], '--json: found no/folder.json; allowed: a file in a folder'),
    'json nowhere': (
        ['--json', '/proc/out.json'],
        '--json: found /proc/out.json, where nothing can be written',
    ),
    'weights': (['--weights', 'none.pth'], 'none.pth: there is no such weights file'),
    'tlc': ([*NETWORK, '--tlc', '9'], 'tlc: found 9; allowed: a window of a positive multiple of 8'),
    'precision': ([*NETWORK, '--precision', 'fp64'], "precision: found 'fp64'; allowed: auto, fp32"),
}


@pytest.mark.parametrize(('arguments', 'message'), WRONG.values(), ids=list(WRONG))
def test_wrong_arguments(here, capsys, arguments, message):
    assert message in refusal(capsys, *arguments)
    assert not Path('out.json').exists()


def test_without_the_published_weights_it_says_where_they_are(here, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, 'ROOT', here)
    said = refusal(capsys)
    assert 'motion_deblurring.pth: found no published weights; allowed: these, which python Motion_Deb' in said
    assert 'download_data.py --data weights gets, or others with --weights, as /' in said
    assert 'motion_deblurring_compact.pth' in said


def test_pairs_of_ones_own_are_restored_by_the_weights_of_the_demo(here, capsys, at_once, monkeypatch):
    published = here / 'not there.pth'
    monkeypatch.setitem(
        tasks.TASKS, 'motion_deblurring', replace(tasks.TASKS[evaluate.TASK], published=published)
    )
    given = ['--input_dir', 'data/GoPro/input', '--target_dir', 'data/GoPro/target', '--device', 'cpu']
    assert run(*given) == 0
    assert f'weights: {COMPACT}' in capsys.readouterr().out


def test_results_do_not_replace_the_images(here, capsys):
    given = ['--input_dir', 'data/pairs', '--target_dir', 'data/GoPro/target', '--save_dir', 'data']
    (here / 'data' / 'GoPro' / 'input').rename(here / 'data' / 'pairs')
    before = (here / 'data' / 'pairs' / '2.png').read_bytes()
    said = refusal(capsys, *given, *NETWORK, status=1)
    assert f'--save_dir: found {here / "data" / "pairs"}, where images of the set are; allowed: another' in said
    assert (here / 'data' / 'pairs' / '2.png').read_bytes() == before


@pytest.mark.parametrize(
    ('code', 'text'),
    [
        (cv2.Error.StsNoMem, 'GoPro/input/2.png: cannot be measured in the memory there is; fewer --workers'),
        (cv2.Error.StsBadArg, 'GoPro/input/2.png: OpenCV cannot measure them: no idea'),
    ],
)
def test_errors_of_opencv_are_sentences(here, capsys, at_once, monkeypatch, code, text):
    def fails(*_, **__):
        error = cv2.error('no idea')
        error.code, error.err = code, 'no idea'
        raise error

    monkeypatch.setattr('basicsr.metrics.psnr_ssim.calculate_psnr', fails)
    said = complaints(capsys, '--datasets', 'GoPro', '--restored_dir', 'restored')
    assert text in said


# --- processes ----------------------------------------------------------------------------------------------


def test_a_process_that_dies_is_a_sentence(here, capsys, monkeypatch):
    class Broken(Here):
        def submit(self, *_):
            raise BrokenProcessPool('terminated abruptly')

    monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Broken)
    said = refusal(capsys, '--datasets', 'GoPro', '--restored_dir', 'restored', status=1)
    assert 'GoPro: a process that measures has died, perhaps for want of memory; fewer --workers' in said


def test_only_a_few_images_are_in_memory():
    taken = []

    class Pool(Here):
        def submit(self, _, number):
            future = concurrent.futures.Future()
            future.set_result(number)
            return future

    def jobs():
        for number in range(20):
            taken.append(number)
            yield number, number

    done = []
    for number, job in evaluate.in_order(Pool(), jobs(), 4):
        assert job.result() == number
        done.append(number)
        assert len(taken) - len(done) <= 4
    assert done == list(range(20))


@pytest.mark.skipif(os.name != 'posix', reason='signals')
def test_as_a_command_ended_by_sigterm(here):
    """It ends at once, and no process is left: the pipe that all of them have inherited closes."""
    script = ROOT / 'Motion_Deblurring' / 'evaluate.py'
    for kind in ('input', 'target'):
        for name in range(20, 60):
            write_png(here / 'data' / 'GoPro' / kind / f'{name}.png', np.tile(picture(name, 1), (12, 12, 1)))
    command = [
        sys.executable,
        script,
        '--data_dir',
        'data',
        '--workers',
        '2',
        '--datasets',
        'GoPro',
        '--device',
    ]
    command += ['cpu', '--weights', COMPACT, '--json', 'out.json']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith('device: '):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=240)  # to the end of the pipe
    assert process.returncode == 128 + signal.SIGTERM and 'Traceback' not in out
    if Path('out.json').exists():  # of what was measured until then
        assert len(written()['datasets']['GoPro']['images']) < 43


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
        if column in evaluate.TEST_SETS
    }


def test_published_figures_are_those_of_the_readme():
    table = published_table()
    assert {column for _, column in table} == set(evaluate.TEST_SETS)
    for method, sets in evaluate.PUBLISHED.items():
        for name, protocol in evaluate.TEST_SETS.items():
            keys = [figure.key for figure in evaluate.PROTOCOLS[protocol]][:2]
            figures = sets.get(name, {})
            assert [figures[key] for key in keys if key in figures] == table[method, name], (method, name)


def test_published_figures_without_alignment_are_those_of_the_readme():
    text = ' '.join(README.read_text(encoding='utf-8').split())
    luma = {name: sets['psnr_y'] for name, sets in evaluate.PUBLISHED['Restormer'].items() if 'psnr_y' in sets}
    assert f'{luma["RealBlur_J"]} (J) and {luma["RealBlur_R"]} (R)' in text


def test_published_figures_are_of_known_sets_and_figures():
    for sets in evaluate.PUBLISHED.values():
        for name, figures in sets.items():
            assert figures.keys() <= {figure.key for figure in evaluate.PROTOCOLS[evaluate.TEST_SETS[name]]}
