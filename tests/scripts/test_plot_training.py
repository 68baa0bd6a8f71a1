"""Curves of runs that follow one another."""

import json
import sys

import cv2
import pytest

from scripts import plot_training


def write_run(folder, *lines):
    folder.mkdir()
    (folder / 'history.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    one = write_run(
        tmp_path / 'one',
        {'iter': 0, 'kind': 'input_a', 'psnr': 20.0},
        {'iter': 10, 'kind': 'train', 'loss': 0.5, 'lr': 1e-3, 'stage': 1},
        {'iter': 20, 'kind': 'train', 'loss': 0.4, 'lr': 1e-4, 'stage': 1},
        {'iter': 20, 'kind': 'val_a', 'psnr': 21.5},
    )
    two = write_run(
        tmp_path / 'two',
        {'iter': 0, 'kind': 'input_a', 'psnr': 19.0},
        {'iter': 5, 'kind': 'train', 'loss': 0.3, 'lr': 1e-3, 'stage': 1},
        {'iter': 5, 'kind': 'val_a', 'psnr': 22.0},
        {'iter': 5, 'kind': 'val_b', 'psnr': 30.0},
    )
    return [one, two]


def test_runs_follow_one_another_and_gains_are_over_the_input(runs):
    drawn = plot_training.curves(runs)
    assert drawn['train', 'loss'] == ([10, 20, 25], [0.5, 0.4, 0.3])
    assert drawn['train', 'lr'] == ([10, 20, 25], [1e-3, 1e-4, 1e-3])
    assert drawn['val_a', 'psnr'] == ([20, 25], [1.5, 3.0])
    assert ('val_b', 'psnr') not in drawn  # what its input had is not known
    assert not any(kind.startswith('input') for kind, _ in drawn)


def test_a_run_begun_with_the_state_of_another_goes_on_with_its_numbers(runs, tmp_path):
    three = write_run(
        tmp_path / 'three',
        {'iter': 20, 'kind': 'train', 'loss': 0.3, 'lr': 1e-5, 'stage': 1},
        {'iter': 30, 'kind': 'train', 'loss': 0.2, 'lr': 1e-5, 'stage': 1},
        {'iter': 30, 'kind': 'val_a', 'psnr': 22.5},
        {'iter': 35, 'kind': 'train', 'loss': 0.1, 'lr': 1e-5, 'stage': 1},
    )
    short = write_run(
        tmp_path / 'short',
        {'iter': 10, 'kind': 'train', 'loss': 0.2, 'lr': 1e-5, 'stage': 1},
        {'iter': 15, 'kind': 'train', 'loss': 0.1, 'lr': 1e-5, 'stage': 1},
    )
    drawn = plot_training.curves([runs[0], short])
    assert drawn['train', 'loss'] == ([10, 20, 30, 35], [0.5, 0.4, 0.2, 0.1])
    drawn = plot_training.curves([runs[0], three, runs[1]])
    assert drawn['train', 'loss'] == ([10, 20, 20, 30, 35, 40], [0.5, 0.4, 0.3, 0.2, 0.1, 0.3])
    assert drawn['val_a', 'psnr'] == ([20, 30, 40], [1.5, 2.5, 3.0])


def test_a_last_line_that_a_kill_has_cut_is_left_out(runs):
    with (runs[1] / 'history.jsonl').open('a') as history:
        history.write('{"iter": 6, "ki')
    assert plot_training.curves(runs)['train', 'loss'] == ([10, 20, 25], [0.5, 0.4, 0.3])


@pytest.mark.parametrize('name', ['curves.png', 'curves.svg'])
def test_a_picture(runs, tmp_path, name):
    pytest.importorskip('matplotlib')
    output = tmp_path / name
    assert plot_training.main([*map(str, runs), '--output', str(output)]) == 0
    if output.suffix == '.png':
        height, width, _ = cv2.imread(str(output)).shape
        assert width > height > 100
    else:
        assert '<svg' in output.read_text()


def test_a_run_without_validation(tmp_path):
    pytest.importorskip('matplotlib')
    run = write_run(tmp_path / 'one', {'iter': 1, 'kind': 'train', 'loss': 1.0, 'lr': 0.1})
    assert plot_training.main([str(run), '--output', str(tmp_path / 'curves.png')]) == 0


@pytest.mark.parametrize(
    ('lines', 'output', 'text'),
    [
        (
            None,
            'c.png',
            'history.jsonl: cannot be read (No such file or directory); allowed: the folder of a run',
        ),
        (
            '{"iter": 1, "kind": "train"}\nx\n{}',
            'c.png',
            'history.jsonl: line 2 is not a line of a history',
        ),
        ('{"iter": "x", "kind": "train"}\n{}', 'c.png', 'history.jsonl: line 1 is not a line of a history'),
        ('{"iter": 1, "kind": "train", "stage": 1}\n', 'c.png', 'nothing has been logged of its training'),
        ('[]\n{}', 'c.png', 'history.jsonl: line 1 is not a line of a history'),
        ('{"iter": 1, "kind": "val_a", "psnr": 3}\n', 'c.png', 'nothing has been logged of its training'),
        ('{"iter": 1, "kind": "train", "loss": 1, "lr": 1}\n', 'no/c.png', 'c.png: cannot be written'),
        ('', 'c.txt', 'c.txt; allowed: a file ending in .png or .svg'),
    ],
)
def test_mistakes_are_sentences(tmp_path, capsys, lines, output, text):
    pytest.importorskip('matplotlib')
    if lines is not None:
        (tmp_path / 'history.jsonl').write_text(lines)
    with pytest.raises(SystemExit) as refusal:
        plot_training.main([str(tmp_path), '--output', str(tmp_path / output)])
    assert refusal.value.code and text in capsys.readouterr().err


def test_without_matplotlib(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(SystemExit):
        plot_training.main([str(runs[0]), '--output', str(tmp_path / 'c.png')])
    assert 'pip install matplotlib' in capsys.readouterr().err
