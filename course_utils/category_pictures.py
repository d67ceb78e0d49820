"""The lecture's two pictures of fine-tuning: all weights move, or small new parts.

Inline SVG inside HTML, as in pipeline_map.py: text takes the page's own colour.
"""

from dataclasses import dataclass
from html import escape

FROZEN, TRAINED, LINE = "120,120,130", "235,125,20", "rgb(128,128,128)"
_SMALL = 'font-size="12" fill="currentColor" fill-opacity=".75"'


@dataclass(frozen=True)
class Picture:
    """An SVG drawing, and the same in words where pictures cannot be shown."""

    words: str
    width: int  # SVG units
    height: int
    drawing: str

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.words)}" style="display:block;width:100%;'
            f'max-width:{self.width}px;height:auto;font-family:system-ui,sans-serif" '
            f'xmlns="http://www.w3.org/2000/svg">{self.drawing}</svg>'
        )


# ---- parts: x, y is the top left corner, in SVG units ------------------------------------------


def _box(x: int, y: int, w: int, h: int, colour: str, title: str = "", words: str = "") -> str:
    middle = x + w / 2
    top = y + h / 2 + (5 if not words else -3)
    text = (
        f'<text x="{middle}" y="{top}" text-anchor="middle" font-size="14" font-weight="600" '
        f'fill="currentColor">{escape(title)}</text>\n'
        f'<text x="{middle}" y="{top + 18}" text-anchor="middle" {_SMALL}>{escape(words)}</text>\n'
    )
    return (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="9" fill="rgba({colour},.16)" '
        f'stroke="rgb({colour})" stroke-width="1.6"/>{text}'
    )


def _text(x: int, y: int, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {_SMALL}>{escape(words)}</text>\n'


def _arrow(path: str, tip: str, direction: str = "right") -> str:
    """A line along `path`, and a head with its tip at `tip` ("x,y")."""
    head = {"right": "l-9,-5 v10 z", "up": "l-5,9 h10 z", "left": "l9,-5 v10 z"}[direction]
    return (
        f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.7"/>'
        f'<path d="M{tip}{head}" fill="{LINE}"/>'
    )


def _legend(x: int, y: int, grey: str) -> str:
    return (
        _box(x, y, 20, 14, FROZEN)
        + _text(x + 28, y + 12, grey, "start")
        + _box(x + 90, y, 20, 14, TRAINED)
        + _text(x + 118, y + 12, "trained", "start")
    )


# ---- the pictures ------------------------------------------------------------------------------


def full_fine_tuning() -> Picture:
    """Slide 5: the pretrained weights all move, and each task gets a copy of the whole model."""
    stack = "".join(_box(372, 62 + 40 * i, 176, 32, TRAINED, f"layer {4 - i}") for i in range(4))
    tasks = "".join(
        _box(690, 38 + 76 * i, 200, 54, TRAINED, f"model for task {name}", "a full copy")
        + _arrow(f"M556,140 C620,140 620,{65 + 76 * i} 680,{65 + 76 * i}", f"688,{65 + 76 * i}")
        for i, name in enumerate("ABC")
    )
    drawing = (
        _box(12, 62, 190, 62, FROZEN, "pretrained model", "all its weights θ₀")
        + _box(12, 158, 190, 62, FROZEN, "data of the task", "prompts and answers")
        + _arrow("M204,93 H362", "368,93")
        + _arrow("M204,189 H362", "368,189")
        + _text(284, 84, "start")
        + _text(284, 180, "loss, gradient")
        + _text(460, 48, "every weight moves")
        + stack
        + tasks
        + _legend(12, 250, "given")
    )
    words = (
        "Full fine-tuning: pretrained model and data of the task -> every weight of every layer is "
        "trained -> a full copy of the model for each task"
    )
    return Picture(words, 910, 276, drawing)


def peft_places() -> Picture:
    """Slide 6: one frozen transformer layer, and where each method puts its small trained part."""
    frozen = (
        _box(250, 320, 330, 40, FROZEN, "embeddings of the text")
        + _box(250, 206, 330, 60, FROZEN, "attention", "queries, keys, values, output")
        + _box(250, 76, 330, 44, FROZEN, "feed-forward")
        + _arrow("M415,318 V276", "415,270", "up")
        + _arrow("M415,206 V196", "415,190", "up")
        + _arrow("M415,146 V130", "415,124", "up")
        + _arrow("M415,76 V66", "415,60", "up")
        + _arrow("M415,24 V14", "415,8", "up")
    )
    trained = (
        _box(250, 150, 330, 38, TRAINED, "adapter: down, bend, up, add")
        + _box(250, 22, 330, 36, TRAINED, "adapter: down, bend, up, add")
        + _box(28, 320, 190, 40, TRAINED, "trained vectors")
        + _arrow("M218,340 H238", "247,340")
        + _box(28, 214, 190, 44, TRAINED, "extra keys, values")
        + _arrow("M218,236 H238", "247,236")
        + _box(612, 214, 150, 44, TRAINED, "+ B A x")
        + _arrow("M612,236 H592", "583,236", "left")
        + _box(612, 76, 150, 44, TRAINED, "+ B A x")
        + _arrow("M612,98 H592", "583,98", "left")
    )
    names = (
        _text(123, 312, "prompt tuning")
        + _text(123, 206, "prefix tuning, in every layer")
        + _text(226, 174, "Houlsby adapter", "end")
        + _text(226, 45, "Houlsby adapter", "end")
        + _text(687, 206, "LoRA, beside a weight")
        + _text(687, 68, "LoRA, beside a weight")
        + _text(687, 345, "BitFit: biases of the grey boxes")
        + _text(600, 15, "to the next layer", "start")
    )
    dashed = (
        f'<rect x="236" y="4" width="358" height="272" rx="14" fill="none" stroke="{LINE}" '
        'stroke-dasharray="5 4"/>'
    )
    words = (
        "Parameter-efficient fine-tuning: a frozen layer (attention, feed-forward) with small "
        "trained parts: prompt tuning puts vectors before the text, prefix tuning keys and values "
        "into attention, LoRA adds B A x beside a weight, Houlsby adapters stand after attention "
        "and after the feed-forward, BitFit trains biases"
    )
    return Picture(words, 800, 404, frozen + trained + names + dashed + _legend(28, 384, "frozen"))
