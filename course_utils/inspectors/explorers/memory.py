"""MemoryExplorer: the GPU memory of a training recipe, term by term, against real cards."""

import dataclasses
from typing import Any

from course_utils.errors import CourseError
from course_utils.inspectors.explorers.explorer import Choice, Explorer, Number, Preset
from course_utils.inspectors.page import json_bytes
from course_utils.memory import (
    GPUS,
    RECIPES,
    ModelShape,
    Recipe,
    estimate,
    find_shape,
    fits,
    largest_batch,
    recipe,
)
from course_utils.report.markup import fixed

MODELS = (
    "smollm2-135m",
    "smollm2-360m",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "smollm3-3b",
    "qwen3-8b",
    "llama-7b",
    "llama-13b",
    "llama-33b",
    "llama-65b",
    "gpt2",
    "opt-1.3b",
)
CARDS = ("T4", "L4", "A100-40", "A6000", "A100-80", "H100")
OPTIMIZERS = ("adamw", "paged-adamw", "adamw-8bit", "paged-adamw-8bit", "adafactor", "sgd")
OWN = "recipe"  # as the recipe has it
GIB = 2**30
SHAPE = (  # noqa: SIM905
    "family vocabulary hidden layers heads kv_heads head_dim ffn context tied qk_norm "
    "positions embedding final_norm table parameters trunk_parameters"
).split()


class MemoryExplorer(Explorer):
    """The calculator of course_utils.memory with sliders; `course memory` is the same in text.

    Args:
        shape: another model beside the known ones: a ModelShape, or what `find_shape` takes, as
            "65B" or a Hub id.
        chosen: the inputs, by name.
    Raises: CourseError for an unknown model or input, or a length the model cannot have.
    """

    module, title = "explorers/memory.js", "Will it fit? GPU memory of a training step"
    css = ("explorers/explore.css", "explorers/memory.css")
    lead = (
        "Weights, gradients, optimizer states, activations and logits at the worst moment of a "
        "step, beside what the cards have. Every term is arithmetic that you can read."
    )
    formula = "total = terms of the worst moment + CUDA context + 5% fragmentation"
    source = "course_utils/memory, held to measured peaks"
    inputs = {  # noqa: RUF012
        "model": Choice("model", "llama-65b", tuple((name, name) for name in MODELS)),
        "recipe": Choice("recipe", "qlora", tuple((name, name) for name in RECIPES)),
        "seq": Number(
            "tokens a row", 512, 2, 131_072,
            stops=(64, 128, 256, 512, 1024, 2048, 4096, 8192), whole=True,
        ),
        "batch": Number(
            "rows (or pairs)", 1, 1, 4096, stops=(1, 2, 4, 8, 16, 32, 64, 128), whole=True
        ),
        "rank": Number("LoRA rank", 16, 1, 4096, stops=(1, 4, 8, 16, 32, 64, 128, 256), whole=True),
        "optimizer": Choice(
            "optimizer", OWN, ((OWN, "the recipe's"), *((name, name) for name in OPTIMIZERS))
        ),
        "checkpointing": Choice(
            "checkpoints", OWN, ((OWN, "recipe's"), ("on", "on"), ("off", "off"))
        ),
    }  # fmt: skip
    presets = (
        Preset(
            "65B on one 48 GB card",
            "QLoRA's claim. Now try “full” on the same model.",
            {"model": "llama-65b", "recipe": "qlora", "seq": 512, "batch": 1, "rank": 16,
             "optimizer": OWN, "checkpointing": OWN},
        ),
        Preset(
            "7B, everything trained",
            "Sixteen bytes a parameter before any activation: weights, gradients, two moments.",
            {"model": "llama-7b", "recipe": "full", "seq": 512, "batch": 1,
             "optimizer": OWN, "checkpointing": OWN},
        ),
        Preset(
            "A large vocabulary",
            "151,936 tokens: the logits of long rows outweigh the model.",
            {"model": "qwen3-0.6b", "recipe": "lora", "seq": 4096, "batch": 2,
             "optimizer": OWN, "checkpointing": OWN},
        ),
        Preset(
            "Checkpointing switched off",
            "All blocks' activations are kept: faster, and far larger.",
            {"model": "llama-7b", "recipe": "qlora", "seq": 1024, "batch": 4,
             "optimizer": OWN, "checkpointing": "off"},
        ),
    )  # fmt: skip

    def __init__(self, shape: ModelShape | str | None = None, **chosen: Any) -> None:
        self._shapes = {name: find_shape(name, online=False) for name in MODELS}
        if shape is not None:
            found = find_shape(shape) if isinstance(shape, str) else shape
            self._shapes[found.name] = found
            options = tuple((name, name) for name in self._shapes)
            self.inputs = {**type(self).inputs, "model": Choice("model", found.name, options)}
            chosen = {"model": found.name, **chosen}
        if "model" in chosen and chosen["model"] not in self._shapes:
            raise CourseError(
                f"MemoryExplorer has no model {chosen['model']!r}, it has "
                f"{', '.join(self._shapes)}; give another one as MemoryExplorer(shape=…)"
            )
        super().__init__(**chosen)

    def constants(self) -> dict[str, Any]:
        plain = dataclasses.asdict(Recipe("plain"))
        return {
            "columns": SHAPE,
            "shapes": {name: shape_row(shape) for name, shape in self._shapes.items()},
            "plain": {**plain, "name": ""},
            "recipes": {
                name: {k: v for k, v in dataclasses.asdict(r).items() if v != plain[k]}
                for name, r in RECIPES.items()
            },
            "gpus": [[name, GPUS[name]] for name in CARDS],
        }

    def shortened(self, budget: int) -> dict[str, Any]:
        """As many of the models as fit, the chosen one in any case."""
        state = self.state
        options = next(field for field in state["inputs"] if field["name"] == "model")["options"]
        for name in [name for name in reversed(state["shapes"]) if name != self.chosen["model"]]:
            if json_bytes(state) <= budget:
                break
            del state["shapes"][name]
            options.remove([name])
        return state

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Bytes: terms (of the worst moment), context, fragmentation, total, peak, paged, moments

        (total of each); moment; fits and batches (the largest that fits) by card."""
        shape = self._shapes[chosen["model"]]
        changes: dict[str, Any] = {"rank": int(chosen["rank"])}
        if chosen["optimizer"] != OWN:
            changes["optimizer"] = chosen["optimizer"]
        if chosen["checkpointing"] != OWN:
            changes["checkpointing"] = chosen["checkpointing"] == "on"
        plan = recipe(chosen["recipe"], **changes)
        seq = int(chosen["seq"])
        found = estimate(shape, plan, seq, int(chosen["batch"]))
        return {
            "moment": found.moment,
            "moments": {name: sum(terms.values()) for name, terms in found.moments.items()},
            "terms": found.terms,
            "peak": found.peak,
            "context": found.context,
            "fragmentation": found.fragmentation,
            "paged": found.paged,
            "total": found.total,
            "parameters": shape.parameters,
            "fits": fits(found, CARDS),
            "batches": {name: largest_batch(shape, plan, seq, name) for name in CARDS},
        }

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        largest = sorted(found["terms"].items(), key=lambda term: -term[1])[:5]
        rows = [(name, f"{fixed(size / GIB)} GiB") for name, size in largest]
        cards = [name for name, fit in found["fits"].items() if fit]
        return [
            ("total", f"{fixed(found['total'] / GIB)} GiB"),
            ("fits", ", ".join(cards) or "none of the cards"),
            ("worst moment", found["moment"]),
            *rows,
        ]

    def line(self) -> str:
        (_, total), (_, cards), *_ = self.told(self.frame())
        c = self.chosen
        what = f"{c['model']}, {c['recipe']}, {c['batch']:g} × {c['seq']:g} tokens"
        return f"MemoryExplorer: {what}: {total}; fits {cards}"


def shape_row(shape: ModelShape) -> list[Any]:
    """A shape as `shapeOf` of memory_terms.js wants it: `SHAPE`'s columns, then its matrices."""
    matrices = [[x.inputs, x.outputs, int(x.bias)] for x in shape.linears]
    values = (getattr(shape, name) for name in SHAPE)
    return [*(int(v) if isinstance(v, bool) else v for v in values), matrices]
