"""A sweep: one row per setting and seed, kept as it comes, continued after an interruption."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.training.jsonl import plain
from course_utils.training.run import RunLog

Row = dict[str, Any]


def sweep(
    directory: Path | str,
    config: Mapping[str, Any],
    points: Sequence[Row],
    measure: Callable[..., Row],
    progress: bool = True,
) -> list[Row]:
    """Measures the points that the directory does not have yet; returns a row for every point.

    Args:
        config: all that the numbers depend on; a directory with another one is refused.
        points: what is varied, plain values: {"method": "lora", "seed": 0}.
        measure: called with a point's values as arguments -> what was measured, plain values.
    Returns: rows {step, **point, **measured} in the order of `points`.
    Raises: RunError when the directory holds a sweep with another config.
    """
    log = RunLog.create(directory, dict(config), seed=0, resume=True)
    done = {_key(row, points[0]): row for row in log.rows} if points else {}
    for number, point in enumerate(points):
        if _key(point, point) in done:
            continue
        if progress:
            said = ", ".join(f"{name} {value}" for name, value in point.items())
            print(f"[{number + 1}/{len(points)}] {said}", flush=True)
        row = {"step": len(done), **point, **measure(**point)}
        log.append(row)
        done[_key(point, point)] = plain(row)
    return [done[_key(point, point)] for point in points]


def _key(row: Row, point: Row) -> tuple[tuple[str, Any], ...]:
    return tuple((name, row.get(name)) for name in sorted(point))


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds (n - 1; 0 for one seed); None if a value is missing,
    so that no mean is over other seeds than its neighbour's."""
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) < len(values):
        return None
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def table(
    rows: Sequence[Row], by: Sequence[str], columns: Mapping[str, tuple[str, int]]
) -> list[str]:
    """Lines of a Markdown table: mean ± spread over the rows that agree in `by`.

    Args: columns: key of the rows -> (heading, digits after the point). "—" marks missing values.
    """
    if not rows:
        raise CourseError("no rows to tabulate; run at least one seed")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    titles = [*by, *(heading for heading, _ in columns.values())]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for key, members in groups.items():
        cells = [str(value) for value in key]
        for name, (_, digits) in columns.items():
            found = mean_and_spread([row.get(name) for row in members])
            cells.append("—" if found is None else f"{found[0]:.{digits}f} ± {found[1]:.{digits}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
