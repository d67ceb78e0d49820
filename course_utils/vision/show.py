"""Scenes beside what was said of them, false words marked: HTML for notebooks, else text."""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape

from torch import Tensor

from course_utils.errors import CourseError
from course_utils.vision.hallucination import Judgement, judge
from course_utils.vision.scenes import SceneSet

PIXELS = 96  # width and height a picture is shown at
_FALSE = (
    "background:rgba(213,94,0,.22);border-bottom:2px solid rgb(213,94,0);border-radius:3px;"
    "padding:0 2px"
)
_TRUE = "border-bottom:2px solid rgb(38,150,115)"
_PICTURE = (
    f"width:{PIXELS}px;height:{PIXELS}px;flex:none;margin:0;image-rendering:pixelated;"
    "border:1px solid rgba(128,128,128,.5);border-radius:6px"
)


def png(image: Tensor) -> bytes:
    """(3, H, W) in [0, 1] (clipped) -> the bytes of a PNG file, 8 bits a channel."""
    height, width = image.shape[1:]
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)  # (H, W, 3)
    lines = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)  # \0: no filter

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 2: RGB
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class Gallery:
    """What `show_scenes` returns: shows itself; `print` gives the text."""

    def __init__(
        self, data: SceneSet, captions: Mapping[str, Sequence[str]], title: str = ""
    ) -> None:
        if not captions:
            raise CourseError("no captions to show: pass them by name, DPO=[...]")
        for name, texts in captions.items():
            if len(texts) < len(data):
                raise CourseError(f'"{name}" has {len(texts)} captions for {len(data)} scenes')
        self.data, self.title = data, title
        self.judged: dict[str, list[Judgement]] = {
            name: [judge(scene, text) for scene, text in zip(data.scenes, texts, strict=False)]
            for name, texts in captions.items()
        }

    def __repr__(self) -> str:
        lines = [self.title] if self.title else []
        for i, scene in enumerate(self.data.scenes):
            there = ", ".join(f"{t.size} {t.colour} {t.shape}" for t in scene.things)
            lines.append(f"[{i}] in the picture: {there}")
            lines += [f"    {name}: {_plain(rows[i])}" for name, rows in self.judged.items()]
        return "\n".join([*lines, "(*word*: not in the picture)"])

    def _repr_html_(self) -> str:
        cards = "".join(self._card(i) for i in range(len(self.data)))
        title = f'<div style="font-weight:650;margin:0 0 8px">{escape(self.title)}</div>'
        return (
            '<div style="font:14px/1.55 system-ui,sans-serif;max-width:1100px;text-align:left">'
            f"{title if self.title else ''}"
            '<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(380px,1fr));'
            f'gap:12px">{cards}</div>'
            f'<div style="margin-top:8px;opacity:.8"><span style="{_FALSE}">word</span> not in the '
            f'picture · <span style="{_TRUE}">word</span> in the picture</div></div>'
        )

    def _card(self, i: int) -> str:
        source = base64.b64encode(png(self.data.images[i])).decode()
        there = ", ".join(f"{t.size} {t.colour} {t.shape}" for t in self.data.scenes[i].things)
        said = "".join(
            f'<div style="margin:0 0 4px"><b>{escape(name)}</b> <span style="opacity:.75">'
            f"{rows[i].false} of {rows[i].claims} false</span><br>{_marked(rows[i])}</div>"
            for name, rows in self.judged.items()
        )
        return (
            '<div style="display:flex;gap:12px;align-items:flex-start;padding:10px;'
            'border:1px solid rgba(128,128,128,.35);border-radius:10px">'
            f'<img alt="{escape(there)}" title="{escape(there)}" style="{_PICTURE}" '
            f'src="data:image/png;base64,{source}"><div>{said}</div></div>'
        )


def _joined(words: list[str]) -> str:
    return " ".join(words).replace(" .", ".")


def _plain(judged: Judgement) -> str:
    words = [f"*{word}*" if fits is False else word for word, fits in judged.verdicts]
    return _joined(words) + f"  ({judged.false} of {judged.claims} false)"


def _marked(judged: Judgement) -> str:
    styles = {True: _TRUE, False: _FALSE}
    return _joined(
        [
            escape(word) if fits is None else f'<span style="{styles[fits]}">{escape(word)}</span>'
            for word, fits in judged.verdicts
        ]
    )


def show_scenes(data: SceneSet, title: str = "", **captions: Sequence[str]) -> Gallery:
    """Pictures with captions below one another, false words marked: at most 100 kB for 8 scenes.

        show_scenes(heldout.first(8), SFT=describe(sft, images), DPO=describe(dpo, images))

    Args: captions: by name, at least one for each scene (more are ignored).
    """
    return Gallery(data, captions, title)
