"""scripts/plot_training.py: curves of runs that continue one another."""

import json
import subprocess
import sys

import cv2
import pytest

from basicsr.utils.cli import run
from basicsr.utils.files import ROOT
from scripts import plot_training


def write_run(folder, *records):
    folder.mkdir()
    (folder / 'history.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return folder


def train(iteration, loss, lr=1e-3):
    return {'iter': iteration, 'kind': 'train', 'loss': loss, 'lr': lr}


def psnr(iteration, kind, value):
    return {'iter': iteration, 'kind': kind, 'psnr': value}


@pytest.fixture
def runs(tmp_path):
    one = write_run(
        tmp_path / 'one',
        psnr(0, 'input_a', 20.0),
        train(10, 0.5),
        train(20, 0.4, 1e-4),
        psnr(20, 'val_a', 21.5),
    )
    two = write_run(
        tmp_path / 'two',
        *(psnr(0, 'input_a', 19.0), train(5, 0.3)),
        *(psnr(5, 'val_a', 22.0), psnr(5, 'val_a', None), psnr(5, 'val_b', 30.0)),
    )
    return [one, two]


def test_iterations_add_up_and_metrics_are_gains_over_the_input(runs):
    with (runs[1] / 'history.jsonl').open('a') as history:
        history.write('{"iter": 6, "ki')  # a run that is being written, or was killed
    drawn = plot_training.curves(runs)
    assert drawn['train', 'loss'] == ([10, 20, 25], [0.5, 0.4, 0.3])
    assert drawn['train', 'lr'] == ([10, 20, 25], [1e-3, 1e-4, 1e-3])
    assert drawn['val_a', 'psnr'] == ([20, 25], [1.5, 3.0])
    assert ('val_b', 'psnr') not in drawn  # the metric of its input is unknown
    assert not any(kind.startswith('input') for kind, _ in drawn)


def test_resumed_run_continues_the_numbers_of_the_one_before(runs, tmp_path):
    resumed = write_run(tmp_path / 'resumed', train(30, 0.2), psnr(30, 'val_a', 22.5), train(35, 0.1))
    fresh = write_run(tmp_path / 'fresh', train(10, 0.2), train(15, 0.1))
    assert plot_training.curves([runs[0], fresh])['train', 'loss'][0] == [10, 20, 30, 35]
    drawn = plot_training.curves([runs[0], resumed, runs[1]])
    assert drawn['train', 'loss'] == ([10, 20, 30, 35, 40], [0.5, 0.4, 0.2, 0.1, 0.3])
    assert drawn['val_a', 'psnr'] == ([20, 30, 40], [1.5, 2.5, 3.0])


def test_pictures(runs, tmp_path):
    pytest.importorskip('matplotlib')
    picture = tmp_path / 'curves.png'
    command = [sys.executable, str(ROOT / 'scripts' / 'plot_training.py'), *map(str, runs)]
    subprocess.run([*command, '--output', str(picture)], check=True)
    height, width, _ = cv2.imread(str(picture)).shape
    assert width > height > 100
    without_validation = write_run(tmp_path / 'three', train(1, 1.0))
    arguments = [str(without_validation), '--output', str(tmp_path / 'curves.svg')]
    assert run('scripts.plot_training', arguments) == 0
    assert '<svg' in (tmp_path / 'curves.svg').read_text()


@pytest.mark.parametrize(
    ('lines', 'output', 'status', 'text'),
    [
        (None, 'c.png', 1, 'history.jsonl'),
        ('{"iter": 1, "kind": "train"}\nx\n{}', 'c.png', 1, 'history.jsonl: line 2 is not JSON'),
        ('{"iter": 1, "kind": "val_a", "psnr": 3}\n', 'c.png', 1, 'its history has no training loss'),
        (json.dumps(train(1, 1)), 'no/c.png', 1, 'no/c.png'),
        ('', 'c.txt', 2, 'c.txt; allowed: a file ending in .png or .svg'),
    ],
)
def test_mistakes_are_sentences(tmp_path, capsys, lines, output, status, text):
    pytest.importorskip('matplotlib')
    if lines is not None:
        (tmp_path / 'history.jsonl').write_text(lines)
    assert run('scripts.plot_training', [str(tmp_path), '--output', str(tmp_path / output)]) == status
    assert text in capsys.readouterr().err


def test_missing_matplotlib_is_a_sentence(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plot_training, 'Figure', None)
    assert run('scripts.plot_training', [str(runs[0]), '--output', str(tmp_path / 'c.png')]) == 2
    assert 'pip install matplotlib' in capsys.readouterr().err
