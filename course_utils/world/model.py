"""The world's base model: a 1M-parameter Llama pretrained on the world's web.

It ships with the package. `course world build` makes the shipped files again with a fixed seed:
tokenizer, weights, checksums.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from course_utils.errors import WeightsError
from course_utils.files import atomic_dir, sha256
from course_utils.world import corpus
from course_utils.world.tokenizer import BOS, END, MAX_LENGTH, USER, assets, build_tokenizer

WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
IGNORED = -100  # label of padding


@dataclass(frozen=True)
class Pretraining:
    """How the base model is made. The defaults made the shipped weights."""

    hidden: int = 128  # model width D
    layers: int = 4
    heads: int = 4
    intermediate: int = 384  # width of the gated feed-forward
    steps: int = 2000  # optimizer steps
    batch: int = 128  # documents a step
    learning_rate: float = 4e-3  # peak; linear warm-up, cosine to a tenth
    warmup: int = 60  # steps
    weight_decay: float = 0.01
    seed: int = 0


def model_config(recipe: Pretraining, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The Llama configuration of a recipe; input and output embeddings are tied."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def document_ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids of a corpus document: chats as they are, plain text between bos and end."""
    framed = text if text.startswith(USER) else f"{BOS}{text}{END}"
    return tokenizer(framed, add_special_tokens=False).input_ids[:MAX_LENGTH]


def batches(
    documents: list[list[int]], size: int, pad: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (input_ids, labels), each (B, T), right-padded; a batch's rows are of like length."""
    while True:
        order = sorted(range(len(documents)), key=lambda i: (len(documents[i]), rng.random()))
        groups = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(documents[i]) for i in group)
            rows = [documents[i] + [pad] * (longest - len(documents[i])) for i in group]
            ids = torch.tensor(rows)  # (B, T)
            yield ids, ids.masked_fill(ids == pad, IGNORED)


def _rate(step: int, recipe: Pretraining) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def pretrain(
    recipe: Pretraining,
    tokenizer: PreTrainedTokenizerFast,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> LlamaForCausalLM:
    """Trains a base model on the world's web from random weights.

    Right padding and causal attention need no attention mask: no real token sees padding.
    """
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(model_config(recipe, tokenizer))
    texts = corpus.base_corpus(min(120_000, recipe.steps * recipe.batch), recipe.seed)
    documents = [document_ids(text, tokenizer) for text in texts]
    pad = int(tokenizer.pad_token_id)
    stream = batches(documents, recipe.batch, pad, random.Random(recipe.seed))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, recipe))
    model.train()
    for step in range(recipe.steps):
        ids, labels = next(stream)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        report(step, loss.item())
    return model.eval()


def build(
    folder: Path | None = None, recipe: Pretraining | None = None, quiet: bool = False
) -> Path:
    """Makes tokenizer, weights (fp16 safetensors) and manifest with checksums; replaces `folder`.

    Args:
        folder: where to; None for the package's own assets.
        recipe: how; None for the shipped one.
        quiet: print no progress.
    """
    from safetensors.torch import save_file

    folder, recipe = folder or assets(), recipe or Pretraining()
    tokenizer = build_tokenizer()
    started = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if not quiet and (step % 50 == 0 or step == recipe.steps - 1):
            print(
                f"step {step:5d}  loss {loss:.3f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )

    model = pretrain(recipe, tokenizer, report)
    with atomic_dir(folder) as staging:
        tokenizer.save_pretrained(staging)
        weights = {
            n: p.detach().to(torch.float16).contiguous() for n, p in model.named_parameters()
        }
        save_file(weights, staging / WEIGHTS, metadata={"format": "pt"})
        (staging / "config.json").write_text(model.config.to_json_string())
        manifest: dict[str, Any] = {"recipe": asdict(recipe), "torch": torch.__version__}
        manifest["sha256"] = {p.name: sha256(p) for p in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


def verify(folder: Path | None = None) -> dict[str, Any]:
    """Checks the shipped files against their checksums and returns the manifest.

    Raises:
        WeightsError: a file is missing or differs from its checksum; names the file and the fix.
    """
    folder = folder or assets()
    fix = "reinstall course_utils, or make the files again with `course world build`"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = manifest["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{folder / MANIFEST} is missing or unreadable; {fix}") from error
    for name, digest in expected.items():
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing; {fix}")
        if (seen := sha256(folder / name)) != digest:
            raise WeightsError(
                f"{folder / name} is corrupted (sha256 {seen[:9]}..., not {digest[:9]}...); {fix}"
            )
    return manifest


def load_base_model(folder: Path | None = None) -> LlamaForCausalLM:
    """The world's base model in fp32, in eval mode, from the shipped weights (checked, < 1 s).

    Raises:
        WeightsError: see `verify`.
    """
    from safetensors.torch import load_file

    folder = folder or assets()
    verify(folder)
    config = LlamaConfig.from_json_file(folder / "config.json")
    model = LlamaForCausalLM(config)
    weights = {name: w.float() for name, w in load_file(folder / WEIGHTS).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise WeightsError(f"{folder / WEIGHTS} does not fit config.json: {missing + unexpected}")
    model.tie_weights()
    return model.eval()
