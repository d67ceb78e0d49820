"""The recipes that the calculator is held to, on small models. No torch."""

from dataclasses import dataclass, replace
from typing import Any

from course_utils.memory.recipe import Recipe, recipe
from course_utils.memory.shape import ModelShape

# 12 to 19 million parameters: large enough that no single vector or table of rotations counts
LLAMA = ModelShape(
    name="small Llama",
    family="llama",
    vocabulary=8000,
    hidden=384,
    layers=8,
    heads=8,
    kv_heads=4,
    head_dim=48,
    ffn=1024,
    context=1024,
    tied=False,
)
QWEN3 = ModelShape(
    name="small Qwen3",
    family="llama",
    vocabulary=16000,
    hidden=320,
    layers=6,
    heads=8,
    kv_heads=2,
    head_dim=64,
    ffn=896,
    context=1024,
    tied=True,
    qk_norm=True,
)
GPT2 = ModelShape(
    name="small GPT-2",
    family="gpt2",
    vocabulary=10000,
    hidden=384,
    layers=8,
    heads=6,
    kv_heads=6,
    head_dim=64,
    ffn=1536,
    context=1024,
    tied=True,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    positions=1024,
)
OPT = ModelShape(
    name="small OPT",
    family="opt",
    vocabulary=10000,
    hidden=384,
    layers=8,
    heads=6,
    kv_heads=6,
    head_dim=64,
    ffn=1536,
    context=1024,
    tied=True,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    positions=1026,
)


@dataclass(frozen=True)
class Case:
    """One measurement."""

    shape: ModelShape
    recipe: Recipe
    seq: int  # tokens a row
    batch: int  # rows, or pairs
    completion: int  # tokens a row with logits

    @property
    def label(self) -> str:
        """The recipe, and where it differs from the plain one of that name."""
        plain = vars(recipe(self.recipe.name))
        changed = [f"{n}={v}" for n, v in vars(self.recipe).items() if v != plain[n]]
        return " ".join([self.shape.name.removeprefix("small "), self.recipe.name, *changed])


EIGHT = "adamw-8bit"  # where a recipe's own optimizer is paged, which a CPU cannot do
CASES = [
    Case(LLAMA, recipe("full"), 128, 4, 127),
    Case(LLAMA, recipe("full", autocast="none"), 192, 2, 64),
    Case(LLAMA, recipe("full", weights="bf16", autocast="none", checkpointing=True), 512, 2, 64),
    Case(LLAMA, recipe("full", autocast="none", attention="eager"), 256, 2, 64),
    Case(LLAMA, recipe("full-8bit"), 256, 2, 32),
    Case(LLAMA, recipe("full", optimizer="adafactor", autocast="none"), 32, 1, 16),
    Case(LLAMA, recipe("lora"), 512, 2, 64),
    Case(LLAMA, recipe("lora", targets=("q_proj", "v_proj"), checkpointing=False), 256, 2, 128),
    Case(LLAMA, recipe("qlora", optimizer=EIGHT), 512, 4, 64),
    Case(LLAMA, recipe("qlora", optimizer=EIGHT, checkpointing=False, rank=64), 256, 2, 128),
    Case(LLAMA, recipe("dpo-lora"), 256, 2, 96),
    Case(LLAMA, recipe("ppo-qlora", optimizer=EIGHT), 128, 4, 64),
    Case(QWEN3, recipe("full", logits="all"), 128, 2, 127),
    Case(QWEN3, recipe("full", accumulate=True, optimizer="sgd-momentum"), 64, 2, 16),
    Case(QWEN3, recipe("reward"), 192, 2, 191),
    Case(QWEN3, recipe("ppo"), 96, 4, 48),
    Case(GPT2, recipe("full", optimizer="sgd", autocast="none"), 256, 2, 32),
    Case(GPT2, recipe("full", attention="eager", checkpointing=True, autocast="none"), 384, 2, 64),
    Case(GPT2, recipe("dpo"), 96, 2, 64),
    Case(GPT2, recipe("lora", targets=("c_attn",), weights="fp32"), 256, 2, 64),
    Case(GPT2, recipe("qlora", optimizer=EIGHT), 256, 2, 128),
    Case(GPT2, recipe("ppo-lora"), 128, 4, 64),
    Case(OPT, recipe("full", checkpointing=True), 256, 2, 64),
    Case(OPT, recipe("reward-qlora", optimizer=EIGHT), 256, 2, 255),
    Case(LLAMA, recipe("inference"), 256, 8, 64),
    Case(GPT2, recipe("inference-4bit"), 256, 8, 200),
]
# Shallow ones that take a second each, for the tests and the GPU script's dry run
_SHORT: dict[str, Any] = {"layers": 2, "vocabulary": 2000}
QUICK = [
    Case(replace(LLAMA, **_SHORT), recipe("full", autocast="none"), 96, 2, 48),
    Case(replace(LLAMA, **_SHORT), recipe("qlora", optimizer=EIGHT), 128, 2, 64),
    Case(replace(GPT2, **_SHORT), recipe("dpo-lora"), 96, 2, 64),
    Case(replace(QWEN3, **_SHORT), recipe("ppo"), 48, 2, 12),
]
