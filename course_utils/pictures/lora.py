"""The lecture's picture of LoRA: a weight that is trained itself, and one with A and B beside it.

lora_beside_full(d=128, k=128, rank=8)      # shows itself in a notebook
"""

from html import escape

from course_utils.adapters.lora import lora_parameters
from course_utils.adapters.sites import check_whole_number
from course_utils.errors import CourseError
from course_utils.pictures.draw import FROZEN, LINE, TRAINED, Picture

_SMALL = 'font-size="12.5" fill="currentColor" fill-opacity=".8"'


def lora_beside_full(d: int, k: int, rank: int) -> Picture:
    """Slide 18: regular fine-tuning beside LoRA, for a weight of k inputs and d outputs.

    Raises: CourseError for sizes below 1, or a rank above min(d, k).
    """
    for value, what in ((d, "d"), (k, "k"), (rank, "rank")):
        check_whole_number(value, 1, what)
    if rank > min(d, k):
        raise CourseError(f"rank {rank} is more than min(d, k) = {min(d, k)}")
    full, few = d * k, lora_parameters(d, k, rank)
    words = (
        f"Regular fine-tuning trains all {full:,} numbers of W ({d} x {k}). LoRA leaves W frozen "
        f"and trains two thin matrices beside it, A ({rank} x {k}) and B ({d} x {rank}), together "
        f"{few:,} numbers; their output is added to W's."
    )
    drawing = "".join(
        [
            _title(205, "Regular (full) fine-tuning"),
            _bar(105, 308, 200, f"input x: {k} numbers"),
            _up(205, 306, 250),
            _shape("105,130 305,130 305,248 105,248", TRAINED),
            _words(205, 180, "W + ΔW", bold=True),
            _words(205, 204, f"{d} × {k}"),
            _words(205, 224, f"{full:,} trained"),
            _up(205, 130, 68),
            _bar(105, 44, 200, f"output: {d} numbers"),
            _title(650, "LoRA"),
            _bar(550, 308, 200, f"input x: {k} numbers"),
            _up(585, 306, 250),
            _shape("460,130 640,130 640,248 460,248", FROZEN),
            _words(550, 180, "W, frozen", bold=True),
            _words(550, 204, f"{d} × {k}"),
            _up(715, 306, 250),
            _shape("670,248 850,248 785,196 735,196", TRAINED),
            _words(760, 230, "A, random", bold=True),
            _words(862, 230, f"{rank} × {k}", "start"),
            _shape("735,182 785,182 850,130 670,130", TRAINED),
            _words(760, 157, "B = 0", bold=True),
            _words(862, 157, f"{d} × {rank}", "start"),
            _up(760, 196, 184),
            _words(862, 193, f"r = {rank}", "start"),
            f'<path d="M550,130 V112 H636 M760,130 V112 H664" fill="none" stroke="{LINE}" '
            'stroke-width="1.7"/>',
            f'<circle cx="650" cy="112" r="13" fill="none" stroke="{LINE}" stroke-width="1.7"/>',
            _words(650, 117, "+", bold=True),
            _up(650, 99, 68),
            _bar(550, 44, 200, f"output: {d} numbers"),
            _words(862, 117, f"{few:,} trained", "start"),
        ]
    )
    return Picture(words, 1010, 340, drawing)


# ---- parts: places in SVG units, y grows downwards ---------------------------------------------


def _title(x: int, text: str) -> str:
    return (
        f'<text x="{x}" y="22" text-anchor="middle" font-size="15" font-weight="650" '
        f'fill="currentColor">{escape(text)}</text>\n'
    )


def _words(x: int, y: int, text: str, anchor: str = "middle", bold: bool = False) -> str:
    look = 'font-size="14" font-weight="600" fill="currentColor"' if bold else _SMALL
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {look}>{escape(text)}</text>\n'


def _bar(x: int, y: int, width: int, text: str) -> str:
    """A vector."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="24" rx="5" fill="rgba(40,120,220,.14)" '
        f'stroke="rgb(40,120,220)" stroke-width="1.4"/>{_words(x + width // 2, y + 17, text)}'
    )


def _shape(points: str, colour: str) -> str:
    """A matrix: a square, or a trapezium that narrows towards the rank."""
    return (
        f'<polygon points="{points}" fill="rgba({colour},.16)" stroke="rgb({colour})" '
        'stroke-width="1.6" stroke-linejoin="round"/>'
    )


def _up(x: int, bottom: int, top: int) -> str:
    """An arrow from y=bottom to y=top."""
    head = f'<path d="M{x},{top} l-5,9 h10 z" fill="{LINE}"/>' if bottom - top > 20 else ""
    return f'<path d="M{x},{bottom} V{top}" stroke="{LINE}" stroke-width="1.7"/>{head}'
