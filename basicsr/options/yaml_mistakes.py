"""Finds the line that makes a text invalid YAML. A parser reports where it noticed, often many lines later."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import yaml

MOST_TRIALS, LONGEST = 80, 50_000  # repairs tried, and characters of a text that is worth them
# `key:value`, at the start of a line or in braces. A path (`C:/x`) and an address (`http://x`) are none.
MISSING_SPACE = re.compile(r'(^\s*(?:- +)*|[{,]\s*)(?:([A-Za-z_]\w*)|("\w+"|\'\w+\')):(?=[^\s/\\,}])')
_TOKEN = re.compile(
    r"""(?<![^\s\[\]{},:-])(?:"(?:[^"\\]|\\.)*("?)|'(?:[^']|'')*('?))|(?<!\S)(\#.*)|([\[{])|([\]}])"""
)
_TAB, _NOT_CLOSED = 'a tab; use spaces', 'that opens here is never closed'
_PARTNER = {'[': ']', '{': '}', ']': '[', '}': '{'}


class Problem(NamedTuple):
    line: int  # from 0
    text: str


class _Repair(NamedTuple):
    problem: Problem
    lines: dict[int, str]


def missing_space(text: str) -> str | None:
    """The sentence about a `key:value` at the start of a line; None if there is none."""
    found = MISSING_SPACE.match(text)
    return None if found is None else f'{text.split(" #")[0].strip()!r} needs a space after the colon'


def find_problem(text: str, error: yaml.MarkedYAMLError, parse: Callable[[str], object]) -> Problem:
    """The first repair of one line that makes the text valid tells what is wrong with it. If none does: the one that
    lets the parser get furthest, or the parser's own words.

    Args:
        parse: raises yaml.MarkedYAMLError on invalid text.
    """
    noticed = _noticed(error)
    is_syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    if not is_syntax or noticed.text == _TAB or len(text) > LONGEST:
        return noticed
    lines = text.splitlines()
    furthest, best = noticed.line, noticed
    for repair in islice(_repairs(lines, error), MOST_TRIALS):
        repaired = [repair.lines.get(index, line) for index, line in enumerate(lines)]
        try:
            parse('\n'.join(repaired) + '\n')
        except yaml.MarkedYAMLError as still:
            line = _noticed(still).line
            if line > furthest and repair.problem.line <= noticed.line and _NOT_CLOSED not in noticed.text:
                furthest, best = line, repair.problem
        except (yaml.YAMLError, RecursionError):
            continue
        else:
            return repair.problem
    return best


def _noticed(error: yaml.MarkedYAMLError) -> Problem:
    """In the parser's words. What is never closed, or never gets its colon, is named where it begins."""
    words = ', '.join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark or error.context_mark
    if re.search('simple key|quoted scalar|flow', error.context or ''):
        mark = error.context_mark or mark
    if r"'\t'" in words:
        words = _TAB
    elif 'quoted scalar' in words and 'end of stream' in words:
        words = f'the quote {_NOT_CLOSED}'
    elif 'parsing a flow' in words and error.problem_mark and mark and error.problem_mark.line > mark.line:
        words = f'the bracket {_NOT_CLOSED}'
    return Problem(mark.line if mark else 0, words)


def _repairs(lines: list[str], error: yaml.MarkedYAMLError) -> Iterator[_Repair]:
    """Likely ones first."""

    def repair(index: int, line: str, problem: str) -> _Repair:
        return _Repair(Problem(index, problem), {index: line})

    scanned = [_scan(line) for line in lines]
    filled = [index for index, (code, *_) in enumerate(scanned) if code.strip()]
    marks = [mark.line for mark in (error.problem_mark, error.context_mark) if mark]
    before = [index for index in filled if index < min(marks, default=0)][-1:]
    near = [index for index in dict.fromkeys([*marks, *before]) if index in filled]

    spaced = {index: MISSING_SPACE.sub(r'\1\2\3: ', scanned[index][0]) for index in filled}
    spaced = {index: line for index, line in spaced.items() if line != scanned[index][0]}
    without = {index: f'{_name(lines[index])!r} needs a space after the colon' for index in spaced}
    for index, line in spaced.items():
        yield repair(index, line, without[index])
    if len(spaced) > 1:  # a habit
        first = min(spaced)
        yield _Repair(Problem(first, without[first]), spaced)

    for index in filled:
        code, quote, single = scanned[index]
        if quote is not None:
            problem = f'the quote {code[quote]} has no partner in this line'
            yield repair(index, code[:quote] + code[quote + 1 :], problem)
            for inside, comment in ((code, ''), *([re.split(r'(?=\s#)', code, maxsplit=1)] * (' #' in code))):
                yield repair(index, inside.rstrip() + code[quote] + comment, problem)
        if single:
            place = single[0]
            problem = f'the bracket {code[place]} has no partner in this line'
            partner = _PARTNER[code[place]]
            if len(single) > 1:
                yield repair(index, code[: single[-1]] + partner + code[single[-1] + 1 :], problem)
            if code[place] in '[{':
                yield repair(index, code + partner, problem)
            else:
                yield repair(index, re.sub(r'(:\s+|^\s*(?!.*:\s))', rf'\g<1>{partner}', code, count=1), problem)
            yield repair(index, code[:place] + code[place + 1 :], problem)

    for index in filled:
        code = scanned[index][0]
        if word := re.match(r'(\s*(?:- +)?[A-Za-z_]\w*)(?=\s|$)(?!\s*:)', code):
            yield repair(index, f'{word[0]}:{code[word.end() :]}', f'{_name(word[0])!r} needs a colon after it')

    depths = {index: len(lines[index]) - len(lines[index].lstrip(' ')) for index in filled}
    for index in dict.fromkeys([*(index for index in filled if depths[index] % 2), *near]):
        place, depth = filled.index(index), depths[index]
        around = [depths[other] for other in filled[max(place - 1, 0) : place + 2]]
        for other in dict.fromkeys([*around, depth + 1, depth - 1, around[0] + 2]):
            if other >= 0 and other != depth:
                problem = f'the indentation of {depth} spaces does not fit the lines around it'
                yield repair(index, ' ' * other + lines[index].lstrip(), problem)

    for index in near:
        if found := re.match(r'(\s*(?:- +)?[\w-]+:\s+)(.*)', scanned[index][0]):
            value = found[2].replace("'", "''")
            yield repair(index, f"{found[1]}'{value}'", f'the value {found[2]!r} needs quotes')
    for index in near:
        yield repair(index, '', _noticed(error).text)


def _name(line: str) -> str:
    return line.split(' #')[0].strip().removeprefix('- ')


def _scan(line: str) -> tuple[str, int | None, list[int]]:
    """The line without its comment, and the places of a quote and of brackets without a partner in it."""
    opened: list[int] = []
    closed: list[int] = []
    for token in _TOKEN.finditer(line):
        double, single, comment, opening, closing = token.groups()
        if comment is not None:
            line = line[: token.start()]
        elif opening:
            opened.append(token.start())
        elif closing and opened and _PARTNER[closing] == line[opened[-1]]:
            opened.pop()
        elif closing:
            closed.append(token.start())
        elif not (double or single):
            return line.rstrip(), token.start(), []
    return line.rstrip(), None, opened + closed
