"""Results of test sets beside published figures: tables, and the entries of a JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from basicsr.evaluation.evaluate import Evaluation
from basicsr.evaluation.report import fixed_width
from basicsr.evaluation.test_sets import ChosenSet
from basicsr.tasks import Figure, Published, Task


def report(one: ChosenSet, result: Evaluation) -> str:
    """Titles and tables of a set and its parts."""
    texts = [(one.name, result, len(one.images), one.test_set.published)]
    for part, indices in one.parts.items():
        texts.append((f'{one.name}, {part}', _part(result, indices), len(indices), one.test_set.parts[part]))
    return '\n'.join(
        f'\n{title(name, some, available, published)}\n{table(one.figures, some, published)}'.rstrip()
        for name, some, available, published in texts
        if some.images
    )


def _part(result: Evaluation, indices: list[int]) -> Evaluation:
    return Evaluation({index: result.figures[index] for index in indices if index in result.figures})


def title(name: str, result: Evaluation, available: int, published: Published) -> str:
    if len(result.images) == available:
        return f'{name}: {available:,} image{"" if available == 1 else "s"}'
    apart = '; the published values are for the full set' if published else ''
    return f'{name}: {len(result.images):,} of {available:,} images only{apart}'


def table(figures: Sequence[Figure], result: Evaluation, published: Published) -> str:
    """A row for each figure: of the degraded images, of the results, and as published. '' without ground truth."""
    counts = count_false(figures, result)
    rows = _rows(figures, result.means, published)
    for row, figure in zip(rows[1:], figures, strict=True):
        if figure.key in counts:
            row[1:3] = [str(number) for number in counts[figure.key].values()]
    return '\n'.join(fixed_width(rows)) if result.means else ''


def _rows(figures: Sequence[Figure], means: Mapping[str, float], published: Published) -> list[list[str]]:
    rows = [['', 'input', 'result', *(f'{method}, published' for method in published)]]
    for figure in figures:
        keys = [start + figure.key for start in ('input_', '')]
        ours = [f'{means[key]:.4f}' if key in means else '-' for key in keys]
        theirs = [
            f'{values[figure.key]:.{figure.digits}f}' if figure.key in values else '-'
            for values in published.values()
        ]
        rows.append([figure.title, *ours, *theirs])
    return rows


def count_false(figures: Sequence[Figure], result: Evaluation) -> dict[str, dict[str, int]]:
    """Key of each yes-or-no metric → number of images for which it is False, by kind."""
    return {
        figure.key: {
            kind: sum(image.get(start + figure.key) is False for image in result.images)
            for kind, start in (('input', 'input_'), ('result', ''))
        }
        for figure in figures
        if isinstance(result.images[0].get(figure.key), bool)
    }


def average(
    task: Task, complete: Mapping[str, Mapping[str, float]], figures: Sequence[Figure]
) -> tuple[str, dict[str, object]]:
    """The mean of the sets' means, as a table and for JSON; beside the published one if all sets of the task are
    complete."""
    keys = next(iter(complete.values()))
    means = {key: float(np.mean([values[key] for values in complete.values()])) for key in keys}
    published = task.average if len(complete) == len(task.test_sets) else {}
    text = '\n'.join(fixed_width(_rows(figures, means, published)))
    data: dict[str, object] = {'datasets': list(complete), 'mean': means, 'published': published}
    return f'\naverage of {", ".join(complete)}\n{text}', data


def as_data(one: ChosenSet, result: Evaluation) -> dict[str, object]:
    """The JSON entry of a set."""
    parts = {
        part: {
            'images_available': len(indices),
            'published': one.test_set.parts[part],
            'mean': _part(result, indices).means,
        }
        for part, indices in one.parts.items()
    }
    counts = count_false(one.figures, result)
    return {
        'protocol': one.test_set.protocol,
        **{f'{kind}_{"dir" if path.is_dir() else "file"}': str(path) for kind, path in one.paths.items()},
        'images_available': len(one.images),
        'published': one.test_set.published,
        'mean': result.means,
        **({'parts': parts} if parts else {}),
        **{f'not_{key}': of_key for key, of_key in counts.items()},
        **({'not_measured': result.failed} if result.failed else {}),
        'images': result.images,
    }
