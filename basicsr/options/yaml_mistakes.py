"""Finds the line that makes a text invalid YAML. A parser often notices it many lines later."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import yaml

MOST_TRIALS, MOST_CHARACTERS = 80, 500_000  # repairs tried, and what they may parse in all
# `key:value`, at the start of a line or in braces; not a path (`C:/x`) or an address (`http://x`).
MISSING_SPACE = re.compile(r'(^\s*(?:- +)*|[{,]\s*)([A-Za-z_]\w*|"\w+"|\'\w+\'):(?=[^\s/\\,}])')
_TOKEN = re.compile(
    r"""
    (?<![^\s\[\]{},:-]) (?: "(?:[^"\\]|\\.)*(?P<double>")? | '(?:[^']|'')*(?P<single>')? )
    | (?<!\S)(?P<comment>\#.*)
    | [\[\]{}]
    """,
    re.VERBOSE,
)
_ENTRY = re.compile(r'\s*(- |[\w-]+:(\s|$))', re.ASCII)  # of a list or a mapping
_TAB, _NOT_CLOSED = 'a tab; use spaces', 'that opens here is never closed'
_PARTNER = {'[': ']', '{': '}', ']': '[', '}': '{'}


class Problem(NamedTuple):
    line: int  # from 0
    text: str


class _Repair(NamedTuple):
    problems: list[Problem]
    lines: dict[int, str]


def missing_space(text: str) -> str | None:
    """The problem of a `key:value` at the start of a line; None if there is none."""
    return f'{_shown(text)} needs a space after the colon' if MISSING_SPACE.match(text) else None


def find_problems(text: str, error: yaml.MarkedYAMLError, parse: Callable[[str], object]) -> list[Problem]:
    """The problems of the first repair that makes the text valid; if none does, of the repair that lets the parser get
    furthest, or the parser's own message.

    Args:
        parse: raises yaml.MarkedYAMLError on invalid text.
    """
    noticed = _noticed(error)
    is_syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    if not is_syntax or noticed.text == _TAB:
        return [noticed]
    lines = text.splitlines()
    furthest, best = noticed.line, [noticed]
    for repair in islice(_repairs(lines, error), min(MOST_TRIALS, MOST_CHARACTERS // len(text))):
        try:
            parse('\n'.join(repair.lines.get(index, line) for index, line in enumerate(lines)) + '\n')
        except yaml.MarkedYAMLError as still:
            line = _noticed(still).line
            is_cause = repair.problems[0].line <= noticed.line and _NOT_CLOSED not in noticed.text
            if line > furthest and is_cause:
                furthest, best = line, repair.problems
        except (yaml.YAMLError, RecursionError):
            continue
        else:
            return repair.problems
    return best


def _noticed(error: yaml.MarkedYAMLError) -> Problem:
    """The parser's message. A quote or bracket that is never closed, or a key without its colon, is reported where it
    begins."""
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


# ------------------------------------------------------------------ repairs


def _repairs(lines: list[str], error: yaml.MarkedYAMLError) -> Iterator[_Repair]:
    """Repairs of every line that looks damaged, then of the lines where the parser noticed it."""
    codes = {index: code for index, code in enumerate(map(_code, lines)) if code.strip()}
    marks = [mark.line for mark in (error.problem_mark, error.context_mark) if mark]
    before = [index for index in codes if index < min(marks, default=0)][-1:]
    near = [index for index in dict.fromkeys([*marks, *before]) if index in codes]
    depths = {index: len(code) - len(code.lstrip(' ')) for index, code in codes.items()}
    odd = [index for index, depth in depths.items() if depth % 2]
    return chain(
        *(_lookalikes(index, code) for index, code in codes.items()),
        *(_variables(index, codes[index]) for index in near),
        _spaces(codes),
        *(_partners(index, code) for index, code in codes.items()),
        *(_colon(index, code) for index, code in codes.items()),
        *(_indentation(index, lines[index], depths) for index in dict.fromkeys([*odd, *near])),
        *(_quotes(index, codes[index]) for index in near),
        (_repair(index, '', _noticed(error).text) for index in near),
    )


def _repair(index: int, line: str, problem: str) -> _Repair:
    return _Repair([Problem(index, problem)], {index: line})


def _lookalikes(index: int, code: str) -> Iterator[_Repair]:
    """Punctuation of other scripts and special spaces, as from input methods and web pages."""
    marks = {'：': ': ', '，': ', ', '“': '"', '”': '"', '‘': "'", '’': "'", '\xa0': ' ', '\u3000': ' '}
    repaired = code
    for mark, plain in marks.items():
        repaired = repaired.replace(mark, plain)
    if repaired != code:
        found = ', '.join(f'a {unicodedata.name(mark).lower()}' for mark in marks if mark in code)
        yield _repair(index, repaired, f'{found}, which YAML takes for text; use the plain character')


def _variables(index: int, code: str) -> Iterator[_Repair]:
    """`${NAME}` within braces, where YAML takes its brace for one of a mapping."""
    variable = re.compile(r'(?<=[\s,\[])\$\{\w+\}[^\s,\]}]*')
    if found := variable.search(code):
        yield _repair(index, variable.sub(r"'\g<0>'", code), f'{found[0]!r} needs quotes within braces')


def _spaces(codes: dict[int, str]) -> Iterator[_Repair]:
    spaced = {index: MISSING_SPACE.sub(r'\1\2: ', code) for index, code in codes.items()}
    spaced = {index: line for index, line in spaced.items() if line != codes[index]}
    repairs = [
        _repair(index, line, f'{_shown(codes[index])} needs a space after the colon')
        for index, line in spaced.items()
    ]
    yield from repairs
    if repairs:  # all at once: the author may never write the space
        yield _Repair([problem for repair in repairs for problem in repair.problems], spaced)


def _partners(index: int, code: str) -> Iterator[_Repair]:
    """Quotes and brackets without a partner in their line: add it, or remove them."""
    places = _single(code)
    if not places:
        return
    place, last = places[0], places[-1]
    mark = code[place]
    is_quote = mark not in _PARTNER
    problem = f'the {"quote" if is_quote else "bracket"} {mark} has no partner in this line'
    without = code[:place] + code[place + 1 :]
    if is_quote:
        text, *comment = re.split(r'(?=\s#)', code, maxsplit=1)
        repaired = [without, code + mark, text + mark + ''.join(comment)]
    elif mark in '[{':
        other = code[:last] + _PARTNER[mark] + code[last + 1 :]  # [1, 2}
        repaired = [*([other] if last != place else []), code + _PARTNER[mark], without]
    else:
        repaired = [re.sub(r'(:\s+|^\s*(?!.*:\s))', rf'\g<1>{_PARTNER[mark]}', code, count=1), without]
    for line in repaired:
        yield _repair(index, line, problem)


def _colon(index: int, code: str) -> Iterator[_Repair]:
    if word := re.match(r'\s*(?:- +)?[A-Za-z_]\w*(?=\s|$)(?!\s*:)', code):
        yield _repair(index, f'{word[0]}:{code[word.end() :]}', f'{_shown(word[0])} needs a colon after it')


def _indentation(index: int, line: str, depths: dict[int, int]) -> Iterator[_Repair]:
    if not _ENTRY.match(line):
        return
    place, depth = [*depths].index(index), depths[index]
    around = [*depths.values()][max(place - 1, 0) : place + 2]
    for other in dict.fromkeys([*around, depth + 1, depth - 1, around[0] + 2]):
        if other >= 0 and other != depth:
            problem = f'the indentation of {depth} spaces does not fit the lines around it'
            yield _repair(index, ' ' * other + line.lstrip(), problem)


def _quotes(index: int, code: str) -> Iterator[_Repair]:
    if found := re.match(r'(\s*(?:- +)?[\w-]+:\s+)(.*)', code):
        value = found[2].replace("'", "''")
        yield _repair(index, f"{found[1]}'{value}'", f'the value {found[2]!r} needs quotes')


def _shown(line: str) -> str:
    return repr(line.split(' #')[0].strip().removeprefix('- '))


def _code(line: str) -> str:
    """The line without its comment."""
    comments = (token.start() for token in _TOKEN.finditer(line) if token['comment'])
    return line[: next(comments, len(line))].rstrip()


def _single(code: str) -> list[int]:
    """Places of the quote or the brackets without a partner, opening ones first."""
    opened: list[int] = []
    closed: list[int] = []
    for token in _TOKEN.finditer(code):
        mark, place = token[0], token.start()
        if mark in _PARTNER:
            if opened and _PARTNER[mark] == code[opened[-1]]:
                opened.pop()
            else:
                (opened if mark in '[{' else closed).append(place)
        elif mark[0] in '"\'' and not (token['double'] or token['single']):
            return [place]
    return opened + closed
