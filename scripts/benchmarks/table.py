"""Rows of figures, as a table that grows line by line or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]


class Column(NamedTuple):
    title: str
    show: Callable[[Any], str] = str
    width: int = 9  # at least


seconds = '{:.3f}'.format
whole = '{:.0f}'.format
rate = '{:.2f}'.format
percent = '{:.0%}'.format


def fraction(value: float) -> str:
    """0.25 is 1/4.0."""
    return f'1/{1 / value:.1f}'


def milliseconds(value: float) -> str:
    """Seconds → text in milliseconds."""
    return f'{1e3 * value:.2f}'


def gigabytes(value: float) -> str:
    """MB → text in GB."""
    return f'{value / 1e3:.2f}'


def multiple(value: float) -> str:
    return f'{value:.1f}x'


class Report:
    """Prints `title`, the columns' titles and each row as it is added; or nothing before its end, then all as JSON,
    however it ends.

    A row without a column's key has `-` there; one that has nothing but `failed` after its first columns says that.
    """

    def __init__(self, machine: Row, title: str, columns: dict[str, Column], as_json: bool) -> None:
        self.machine, self.title, self.columns, self.as_json = machine, title, columns, as_json
        self.rows: list[Row] = []

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        if self.as_json:
            print(json.dumps({'machine': self.machine, 'rows': self.rows}, indent=1))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if self.as_json:
            return
        if len(self.rows) == 1:
            print(f'{self.title}\n{self._line([column.title for column in self.columns.values()])}')
        print(self.line(row), flush=True)

    def line(self, row: Row) -> str:
        if 'failed' in row:
            return f'{self._line([str(row[key]) for key in self.columns if key in row])}  {row["failed"]}'
        return self._line(
            [column.show(row[key]) if key in row else '-' for key, column in self.columns.items()]
        )

    def _line(self, cells: list[str]) -> str:
        widths = (max(len(column.title), column.width) for column in self.columns.values())
        return '  '.join(cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
