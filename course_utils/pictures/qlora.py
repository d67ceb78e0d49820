"""The QLoRA paper's figure: what standard fine-tuning, LoRA and QLoRA store, train and page.

    three_ways(find_shape("llama-65b"), rank=64)      # shows itself in a notebook

The bytes in it are the memory calculator's.
"""

from course_utils.memory import Held, ModelShape, held, recipe
from course_utils.pictures.draw import Picture

GREY, BLUE, ORANGE, GREEN = "120,120,130", "40,120,220", "235,125,20", "20,150,130"
GB = 10**9
_SMALL = 'font-size="12.5" fill="currentColor" fill-opacity=".8"'


def three_ways(shape: ModelShape, rank: int = 64) -> Picture:
    """The three side by side, with the bytes of a model.

    Standard fine-tuning is drawn as in the paper: weights and gradients in 16 bits, Adam's two
    moments in 32. Raises: CourseError for a rank that does not fit the model.
    """
    lora, qlora = (held(shape, recipe(name, rank=rank)) for name in ("lora", "qlora"))
    size = shape.parameters
    drawing = "".join(
        [
            _column(20, "Standard (all weights)", ORANGE, "base model, trained"),
            _words(150, 258, f"16 bits · {_gb(2 * size)}"),
            _words(150, 72, f"32 bits · {_gb(8 * size)}"),
            _arrow(150, 222, 150, 92),
            _words(160, 160, f"gradients · {_gb(2 * size)}", "start"),
            _column(340, "LoRA", BLUE, "base model, frozen"),
            _words(470, 258, f"16 bits · {_gb(_base(lora.weights))}"),
            _adapters(340, lora, "32 bits"),
            _column(660, "QLoRA", GREEN, "base model, frozen"),
            _words(790, 258, f"NF4 · {_gb(_base(qlora.weights))}"),
            _adapters(660, qlora, "16 bits"),
            _box(926, 36, 70, 52, GREY, "CPU"),
            _words(961, 72, "memory"),
            _arrow(884, 62, 922, 62, GREY, both=True),
            _words(903, 104, "paged"),
            _legend(),
        ]
    )
    words = (
        f"{shape.name} at rank {rank}. Standard: base in 16 bits ({_gb(2 * size)}), its gradients "
        f"({_gb(2 * size)}) and 32-bit optimizer states ({_gb(8 * size)}). LoRA: base frozen in 16 "
        f"bits ({_gb(_base(lora.weights))}), gradients and states of A and B only. QLoRA: base "
        f"frozen in NF4 ({_gb(_base(qlora.weights))}), the states paged to the CPU's memory."
    )
    return Picture(words, 1000, 320, f"<defs>{_heads()}</defs>{drawing}")


def _base(weights: dict[str, int]) -> int:
    """Bytes of the base model, 4-bit and other parts."""
    return sum(size for part, size in weights.items() if part.startswith("weights"))


def _gb(size: int) -> str:
    return f"{size / GB:,.1f} GB" if size < 100 * GB else f"{size / GB:,.0f} GB"


# ---- parts: x, y is the top left corner, in SVG units ------------------------------------------


def _column(x: int, title: str, colour: str, base: str) -> str:
    """One way: its name, optimizer states on top, the base model below."""
    return (
        f'<text x="{x + 130}" y="20" text-anchor="middle" font-size="14" font-weight="600" '
        f'fill="currentColor">{title}</text>\n'
        + _box(x + 40, 36, 180, 52, ORANGE, "optimizer states")
        + _box(x, 222, 260, 52, colour, base)
    )


def _adapters(x: int, has: Held, bits: str) -> str:
    """A and B in between, their states, and gradients that pass through the base."""
    return (
        _box(x + 40, 126, 180, 52, ORANGE, "A and B, trained")
        + _words(x + 130, 162, f"{bits} · {_gb(has.weights['LoRA adapters'])}")
        + _words(x + 130, 72, f"32 bits · {_gb(has.optimizer)}")
        + _arrow(x + 130, 126, x + 130, 92)
        + _arrow(x + 130, 222, x + 130, 182, dashed=True)
    )


def _box(x: int, y: int, w: int, h: int, colour: str, title: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="rgba({colour},.16)" '
        f'stroke="rgb({colour})" stroke-width="1.6"/>'
        f'<text x="{x + w / 2}" y="{y + 19}" text-anchor="middle" font-size="14" '
        f'font-weight="600" fill="currentColor">{title}</text>\n'
    )


def _words(x: int, y: int, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {_SMALL}>{text}</text>\n'


def _arrow(
    x1: int,
    y1: int,
    x2: int,
    y2: int,
    colour: str = ORANGE,
    dashed: bool = False,
    both: bool = False,
) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    name = "grey" if colour == GREY else "orange"
    start = f' marker-start="url(#qlora-{name})"' if both else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="rgb({colour})" stroke-width="2"'
        f'{dash}{start} marker-end="url(#qlora-{name})"/>'
    )


def _heads() -> str:
    """Arrow heads, which turn with their line."""
    return "".join(
        f'<marker id="qlora-{name}" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="5" '
        f'markerHeight="5" orient="auto-start-reverse">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="rgb({colour})"/></marker>'
        for name, colour in (("orange", ORANGE), ("grey", GREY))
    )


def _legend() -> str:
    return (
        _arrow(30, 304, 68, 304)
        + _words(78, 308, "gradients, kept and used", "start")
        + _arrow(300, 304, 338, 304, dashed=True)
        + _words(348, 308, "gradients that only pass through the base", "start")
        + _arrow(664, 304, 702, 304, GREY, both=True)
        + _words(714, 308, "pages that move when memory is short", "start")
    )
