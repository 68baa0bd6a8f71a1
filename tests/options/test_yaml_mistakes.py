"""Damaged files: the message names the damaged line."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from option_texts import SMALL

from basicsr.options.load import read_options
from basicsr.utils.errors import OptionError

OPTION_FILES = sorted((Path(__file__).resolve().parents[2] / 'options').rglob('*.yml'))

SPACE = "' needs a space after the colon"
QUOTE = ' has no partner in this line'
# Text of SMALL, what replaces it, and the message; after `+`: so many lines below the text.
DAMAGES = [
    ('name: small', 'name:small', f"'name:small{SPACE}"),
    ('gt_size: 64', 'gt_size:64', f"'gt_size:64{SPACE}"),
    ('gt_size: 64', 'gt_size:64  # see: below', f"'gt_size:64{SPACE}"),
    ('periods: [100]\n    eta_mins: ', 'periods:[100]\n    eta_mins:', f"'periods:[100]{SPACE}"),
    ('{type: AdamW, lr: 3e-4}', '{type: AdamW, lr:3e-4}', f"'lr:3e-4{SPACE}"),
    ('{type: AdamW, lr: 3e-4}', '{"type":AdamW, lr:3e-4}', f"'lr:3e-4{SPACE}"),
    ('pixel_opt:\n    type: L1Loss', 'pixel_opt:\n    type:L1Loss', f"+1'type:L1Loss{SPACE}"),
    ('print_freq: 10', 'print_freq:10', f"'print_freq:10{SPACE}"),
    ('name: small', 'name: small\n  num_gpu:8', f"+1'num_gpu:8{SPACE}"),
    ('name: small', 'name: "small', f'the quote "{QUOTE}'),
    ('name: small', "name: '{}\nval: {save_img: 'no'}", f"the quote '{QUOTE}"),
    ('dataroot_lq: lq', "dataroot_lq: 'lq  # comment", f"the quote '{QUOTE}"),
    ('dataroot_lq: lq', "dataroot_lq: 'lq\n    in_memory: 'no'", f"the quote '{QUOTE}"),
    ('dataroot_lq: lq', "dataroot_lq: {}'", f"the quote '{QUOTE}"),
    ('periods: [100]', 'periods: [100', f'the bracket [{QUOTE}'),
    ('periods: [100]', 'periods: [100  # comment', f'the bracket [{QUOTE}'),
    ('periods: [100]', 'periods: [[100]', f'the bracket [{QUOTE}'),
    ('periods: [100]', 'periods: [100}', f'the bracket [{QUOTE}'),
    ('periods: [100]', 'periods: [10,\n      20,\n      30', f'the bracket [{QUOTE}'),
    ('{type: AdamW, lr: 3e-4}', 'type: AdamW, lr: 3e-4}', f'the bracket }}{QUOTE}'),
    ('  total_iter: 100', '\ttotal_iter: 100', 'a tab; use spaces'),
    ('  gt_size: 64', ' \t gt_size: 64', 'a tab; use spaces'),
    ('train:\n    type', 'train\n    type', "'train' needs a colon after it"),
    ('name: small', 'name small', "'name' needs a colon after it"),
    ('logger:', 'logger', "'logger' needs a colon after it"),
    ('    type: Dataset', '   type: Dataset', 'the indentation of 3 spaces does not fit the lines around it'),
    ('    gt_size: 64', '   gt_size: 64', 'the indentation of 3 spaces does not fit the lines around it'),
    ('    eta_mins', '     eta_mins', 'the indentation of 5 spaces does not fit the lines around it'),
    ('  optim_g', '   optim_g', 'the indentation of 3 spaces does not fit the lines around it'),
    ('gt_size: 64', 'gt_size：64', 'a fullwidth colon, which YAML takes for text; use the plain character'),
    ('gt_size: 64', 'gt_size:\xa064', 'a no-break space, which YAML takes for text; use the plain character'),
    ('name: small', 'name: small: large', "the value 'small: large' needs quotes"),
    ('name: small', 'name: small\nx: {a: ${A}/b, c: [${B}]}', "+1'${A}/b' needs quotes within braces"),
    ('name: small', 'name: @small', "the value '@small' needs quotes"),
]  # fmt: skip


@pytest.mark.parametrize(('old', 'new', 'message'), DAMAGES)
def test_the_message_says_what_is_damaged(load, old, new, message):
    assert old in SMALL
    line = SMALL.count('\n', 0, SMALL.index(old)) + 1 + message.startswith('+1')
    found, *_ = load(SMALL.replace(old, new, 1))
    assert found.startswith(f'<file>:{line}: is not valid YAML: {message.removeprefix("+1")}')


def test_text_below_its_key_is_reported_in_its_own_line(load):
    (found,) = load(SMALL.replace('type: L1Loss', 'type L1Loss'))
    assert found == '<file>:20: train.pixel_opt: found "type L1Loss"; allowed: a mapping'


def test_all_lines_without_spaces_are_named(load):
    found = load(re.sub(r': (?=\S)', ':', SMALL))
    damaged = [number for number, line in enumerate(SMALL.splitlines(), 1) if ': ' in line]
    assert [int(message.split(':')[1]) for message in found] == damaged
    assert found[0] == f"<file>:1: is not valid YAML: 'name:small{SPACE}"


def damages(text):
    """Kind, line and result of every damage by one character."""
    spots = [*re.finditer('', text)]
    for kind, places, put in [
        ('delete', re.finditer('[^\n]', text), ''),
        *((f'insert {mark}', spots, mark) for mark in '\'"[]{}\t'),
        ('no space', re.finditer('(?<=:) (?=[^#])', text), ''),
        ('indent', re.finditer(r'(?m)^(?= *\w)', text), ' '),
        ('dedent', re.finditer(r'(?m)^ ', text), ''),
    ]:
        for place in places:
            line = text.count('\n', 0, place.start()) + 1
            yield kind, line, text[: place.start()] + put + text[place.end() :]


def test_one_wrong_character_is_reported_in_its_line(load):
    misplaced = []
    for kind, line, text in random.Random(0).sample([*damages(SMALL)], 50):
        found = load(text)
        if isinstance(found, list) and not any(each.startswith(f'<file>:{line}: ') for each in found):
            misplaced.append((kind, line, found))
    assert len(misplaced) <= 1, misplaced


@pytest.mark.parametrize('path', OPTION_FILES, ids=lambda path: path.stem)
def test_any_damage_gives_options_or_an_option_error(tmp_path, path):
    generator, content = random.Random(0), path.read_bytes()
    file = tmp_path / 'options.yml'
    for _ in range(8):
        start = generator.randrange(len(content))
        end = start + generator.choice([0, 1, 1, 50])
        file.write_bytes(content[:start] + generator.randbytes(generator.choice([0, 1, 3])) + content[end:])
        try:
            assert read_options(file).name
        except OptionError as error:
            assert all(str(file) in line for line in error.mistakes)
