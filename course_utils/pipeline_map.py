"""The course in one picture: base -> SFT -> reward model -> PPO, and DPO, with measured numbers.

Inline SVG inside HTML: text takes the page's own colour, so it reads on light and dark pages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000, 320
BOX_WIDTH, BOX_HEIGHT = 184, 84
_SMALL = 'font-size="12.5" fill="currentColor" fill-opacity=".75"'


@dataclass(frozen=True)
class Stage:
    """One box: where it stands (top left corner, in SVG units), its words and its colour."""

    key: str  # as in report.json
    title: str
    words: str
    x: int
    y: int
    colour: str  # "r,g,b"


STAGES = (
    Stage("base", "Base model", "has read, has no manners", 8, 118, "120,120,130"),
    Stage("sft", "SFT model", "imitates good answers", 318, 118, "40,120,220"),
    Stage("reward", "Reward model", "predicts what people prefer", 562, 14, "150,90,200"),
    Stage("ppo", "PPO", "from SFT, towards reward", 808, 14, "235,125,20"),
    Stage("dpo", "DPO", "from SFT, by the pairs alone", 808, 222, "20,150,130"),
)


class PipelineMap:
    """The picture, and one line of text where pictures cannot be shown."""

    def __init__(self, numbers: Mapping[str, str] | None = None) -> None:
        """`numbers`: stage key -> a short text to write into its box ("gold +1.23")."""
        known = {stage.key for stage in STAGES}
        self.numbers = {key: text for key, text in (numbers or {}).items() if key in known}

    def __repr__(self) -> str:
        said = {
            s.key: f"{s.title} ({self.numbers[s.key]})" if s.key in self.numbers else s.title
            for s in STAGES
        }
        return "{base} -> {sft} -> {reward} -> {ppo}; {sft} -> {dpo}".format(**said)

    def _repr_html_(self) -> str:
        # Line ends after each text keep the words apart where a page drops the picture.
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(repr(self))}" '
            'style="display:block;width:100%;max-width:1000px;height:auto;font-family:system-ui,'
            'sans-serif" xmlns="http://www.w3.org/2000/svg">'
            f"{''.join(self._box(stage) for stage in STAGES)}{_arrows()}{_preferences()}</svg>"
        )

    def _box(self, stage: Stage) -> str:
        middle = stage.x + BOX_WIDTH / 2
        number = self.numbers.get(stage.key)
        lines = [(stage.title, 'font-size="17" font-weight="650" fill="currentColor"')]
        lines.append((stage.words, _SMALL.replace("12.5", "11.5")))
        if number:
            lines.append((number, 'font-size="13.5" font-weight="650" fill="currentColor"'))
        top = stage.y + (30 if number else 38)
        text = "".join(
            f'<text x="{middle}" y="{top + 21 * i}" text-anchor="middle" {style}>'
            f"{escape(line)}</text>\n"
            for i, (line, style) in enumerate(lines)
        )
        return (
            f'<rect x="{stage.x}" y="{stage.y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="12" '
            f'fill="rgba({stage.colour},.14)" stroke="rgb({stage.colour})" stroke-width="1.6"/>'
            f"{text}"
        )


def _arrows() -> str:
    right, up = "l-9,-5 v10 z", "l-5,9 h10 z"  # arrow heads, from their tips
    arrows = (
        ("M192,160 H310", "M315,160", right),
        ("M502,160 H578", "M583,160", right),
        ("M654,138 V106", "M654,101", up),
        ("M746,56 H800", "M805,56", right),
        ("M654,182 V264 H800", "M805,264", right),
    )
    lines = "".join(
        f'<path d="{line}" fill="none" stroke="rgb(128,128,128)" stroke-width="1.8"/>'
        f'<path d="{tip}{head}" fill="rgb(128,128,128)"/>'
        for line, tip, head in arrows
    )
    labels = (
        (251, 136, "demonstrations"),
        (251, 152, "prompt → answer"),
        (540, 152, "answers"),
        (774, 48, "score"),
        (730, 258, "no reward model"),
    )
    words = "".join(
        f'<text x="{x}" y="{y}" text-anchor="middle" {_SMALL}>{word}</text>\n'
        for x, y, word in labels
    )
    return lines + words


def _preferences() -> str:
    return (
        '<rect x="586" y="138" width="136" height="44" rx="22" fill="rgba(128,128,128,.12)" '
        'stroke="rgb(128,128,128)" stroke-dasharray="4 3"/>'
        '<text x="654" y="157" text-anchor="middle" font-size="13" font-weight="600" '
        'fill="currentColor">preferences</text>\n'
        f'<text x="654" y="173" text-anchor="middle" {_SMALL}>A or B?</text>'
    )
