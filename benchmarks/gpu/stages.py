"""The course's trainers on random models of real shapes: seconds a step, tokens/s, MFU, memory.

Each function is a part (see conduct.py). SFT, reward model and DPO go through TRL's trainers as the
course drives them, PPO through ours; weights are fp32 and the precision is that of the autocast
(fp16 with a loss scaler), but for QLoRA, whose base is in 4 bits.
"""

import contextlib
import dataclasses
import gc
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flops
import torch
from conduct import Row, Skip

from course_utils.memory import ModelShape, estimate, find_shape, recipe
from course_utils.memory.practice import DTYPES, config_of
from course_utils.training import run as runs

GIB = 2**30
TINY = ModelShape(
    name="tiny",
    family="llama",
    vocabulary=512,
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=16,
    ffn=128,
    context=256,
    tied=True,
)
POLICY, FOUR_BIT = "smollm2-135m", "tinyllama-1.1b"
LARGE_GPU = 30  # GiB: from there on four times the rows


@dataclasses.dataclass(frozen=True)
class Work:
    """How much a stage is given. Rows have equal lengths, so that nothing is padding."""

    shape: ModelShape
    rows: int  # B of a step (for preferences: chosen and rejected together)
    seq: int  # T tokens of a row, half of them the prompt's
    warm: int  # steps before the clock starts
    steps: int  # steps that are timed
    answers: int  # of a PPO step
    new: int  # tokens of an answer
    prompt: int  # tokens before it

    @property
    def what(self) -> str:
        return f"{self.shape.name}, {self.rows} x {self.seq} tokens"


def work_for(place: dict[str, Any], model: str = POLICY) -> Work:
    """Sized for a T4 (16 GB) or better; four times the rows on a large GPU; tiny when dry."""
    if place["dry"]:
        return Work(TINY, rows=4, seq=16, warm=1, steps=1, answers=4, new=8, prompt=8)
    large = place["gib"] >= LARGE_GPU
    rows = (32 if large else 8) if model == POLICY else (16 if large else 4)
    answers = 256 if large else 64
    return Work(find_shape(model), rows, 512, 3, 10, answers, new=128, prompt=64)


# ---- models, words, rows -------------------------------------------------------------------------


def build(shape: ModelShape, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model, made where it is to be."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype).eval()


def tokenizer_for(shape: ModelShape) -> Any:
    """One word, one token, over the whole vocabulary of the shape."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, shape.vocabulary))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return made


def words(rng: random.Random, shape: ModelShape, count: int) -> str:
    return " ".join(f"w{rng.randrange(2, shape.vocabulary)}" for _ in range(count))


def rows_of(work: Work, names: tuple[str, ...], count: int) -> Any:
    """A Dataset of prompts with an answer for each name: T tokens in all, EOS included."""
    from datasets import Dataset

    rng = random.Random(0)
    prompt = work.seq // 2
    columns: dict[str, list[str]] = {name: [] for name in ("prompt", *names)}
    for _ in range(count):
        columns["prompt"].append(words(rng, work.shape, prompt) + " ")
        for name in names:
            columns[name].append(words(rng, work.shape, work.seq - prompt - 1) + " ")
    return Dataset.from_dict(columns)


# ---- one stage -----------------------------------------------------------------------------------


def settings_of(work: Work, precision: str, rows: int) -> dict[str, Any]:
    return {
        "steps": work.warm + work.steps,
        "batch_size": rows,
        "precision": precision,
        "max_length": work.seq,
        "learning_rate": 1e-5,
        "save_every": 0,
    }


def seconds_per_step(log: Any, work: Work) -> float:
    """From the trainer's own clock, which it reads after the loss has left the GPU."""
    clock = [row["seconds"] for row in log.rows]
    return (clock[-1] - clock[work.warm - 1]) / (len(clock) - work.warm)


def measured(place: dict[str, Any], work: Work, seconds: float, needed: float) -> Row:
    """What every stage reports. needed: model FLOPs of a step."""
    return {
        "what": work.what,
        "step_seconds": seconds,
        "tokens_s": work.rows * work.seq / seconds,
        "model_flops_s": needed / seconds,
        **memory(place),
    }


def memory(place: dict[str, Any]) -> Row:
    """Peak of torch's allocator in this process, on a GPU."""
    if place["device"] == "cpu":
        return {}
    return {"peak_gib": torch.cuda.max_memory_allocated() / GIB}


def calculated(place: dict[str, Any], work: Work, task: str, precision: str, **more: Any) -> Row:
    """What the calculator says of the same step, on a GPU. TRL computes logits in tiles there."""
    if place["device"] == "cpu":
        return {}
    changes = {"autocast": "none" if precision == "fp32" else precision, "logits": "tiled", **more}
    changes = {"weights": "fp32", "checkpointing": False, **changes}
    name = {"sft": "full"}.get(task, task)
    name = "qlora" if changes.get("method") == "qlora" else name
    pairs = work.rows // 2 if task in ("dpo", "reward") else work.rows
    found = estimate(work.shape, recipe(name, **changes), work.seq, pairs, work.seq // 2)
    return {"calculated_gib": found.peak / GIB}


def with_mfu(row: Row, place: dict[str, Any], precision: str) -> Row:
    """MFU where the GPU's peak is known."""
    found = flops.utilization(row["model_flops_s"], 1.0, place["name"], precision)
    return {**row, "precision": precision} | ({} if found is None else {"mfu": found})


def sft(place: dict[str, Any], precision: str) -> Iterator[Row]:
    """Full fine-tuning on prompts and answers."""
    from course_utils.training.sft import SFTSettings, train_sft

    work = work_for(place)
    model, data = build(work.shape, place["device"]), rows_of(work, ("completion",), 4 * work.rows)
    with scratch_log() as log:
        settings = SFTSettings(**settings_of(work, precision, work.rows))
        train_sft(model, tokenizer_for(work.shape), data, settings, log, progress=False)
        seconds = seconds_per_step(log, work)
    needed = flops.training(work.shape, work.rows, work.seq, work.seq // 2)
    row = measured(place, work, seconds, needed) | calculated(place, work, "sft", precision)
    yield with_mfu(row, place, precision)


def reward(place: dict[str, Any], precision: str) -> Iterator[Row]:
    """The reward model, all of it trained, on pairs."""
    from course_utils.training.reward import RewardSettings, train_reward_model
    from course_utils.training.reward_model import sequence_classifier

    work = work_for(place)
    model = sequence_classifier(build(work.shape, place["device"]))
    fresh_peak(place)
    data = rows_of(work, ("chosen", "rejected"), 2 * work.rows)
    with scratch_log() as log:
        settings = RewardSettings(**settings_of(work, precision, work.rows // 2))
        train_reward_model(model, tokenizer_for(work.shape), data, settings, log, progress=False)
        seconds = seconds_per_step(log, work)
    needed = flops.training(work.shape, work.rows, work.seq, 0)  # a score is D products
    row = measured(place, work, seconds, needed) | calculated(place, work, "reward", precision)
    yield with_mfu(row, place, precision)


def dpo(place: dict[str, Any], precision: str) -> Iterator[Row]:
    """DPO with the reference's log-probabilities computed before (not in the time)."""
    from course_utils.training.dpo import DPOSettings, train_dpo

    work = work_for(place)
    model = build(work.shape, place["device"])
    data = rows_of(work, ("chosen", "rejected"), work.rows)
    with scratch_log() as log:
        settings = DPOSettings(**settings_of(work, precision, work.rows // 2))
        train_dpo(model, tokenizer_for(work.shape), data, settings, log, progress=False)
        seconds = seconds_per_step(log, work)
    needed = flops.training(work.shape, work.rows, work.seq, work.seq // 2)
    row = measured(place, work, seconds, needed)
    row |= calculated(place, work, "dpo", precision, reference="none")
    yield with_mfu(row, place, precision)


def ppo(place: dict[str, Any], precision: str) -> Iterator[Row]:
    """Our PPO with a reward model of the policy's shape: sample, score, one epoch of updates."""
    from course_utils.training.ppo import PPOConfig, PPOTrainer
    from course_utils.training.reward_model import RewardModel, sequence_classifier

    work, rng = work_for(place), random.Random(0)
    policy, tokenizer = build(work.shape, place["device"]), tokenizer_for(work.shape)
    scorer = RewardModel(sequence_classifier(policy), tokenizer)
    fresh_peak(place)
    config = PPOConfig(
        steps=2 if place["dry"] else 3,
        rollouts_per_step=work.answers,
        epochs=1,
        minibatches=2,
        micro_batch=min(16, work.answers // 2),
        max_new_tokens=work.new,
        learning_rate=1e-6,
        missing_eos_penalty=0.0,  # random weights do not end an answer
        precision=precision,
    )
    prompts = [words(rng, work.shape, work.prompt) for _ in range(work.answers)]
    trainer = PPOTrainer(policy, scorer, tokenizer, prompts, config)
    last = [step.stats for step in trainer][-1]
    seq = work.prompt + work.new
    needed = flops.training(work.shape, work.answers, seq, work.new)
    parts = {f"{p}_seconds": last[f"{p}_seconds"] for p in ("rollout", "scoring", "update")}
    row = {
        "what": f"{work.shape.name}, {work.answers} answers of {work.new} after {work.prompt}",
        "step_seconds": last["seconds"],
        "tokens_s": work.answers * work.new / last["seconds"],
        "rollout_tokens_s": work.answers * work.new / last["rollout_seconds"],
        "model_flops_s": needed / last["update_seconds"],
        **parts,
        "note": " + ".join(f"{p.split('_')[0]} {s:.3g} s" for p, s in parts.items()),
        **memory(place),
    }
    yield with_mfu(row, place, precision)


def qlora(place: dict[str, Any], precision: str) -> Iterator[Row]:
    """SFT of a LoRA on a 4-bit model, computed in bf16 or fp16, with the paged optimizer."""
    from course_utils import qlora as four_bit
    from course_utils.tiers import TIERS, TierChoice
    from course_utils.training.sft import SFTSettings, train_sft

    work = work_for(place, FOUR_BIT)
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        build(work.shape, place["device"], torch.bfloat16).save_pretrained(folder)
        tokenizer_for(work.shape).save_pretrained(folder)
        gc.collect()
        tier = dataclasses.replace(TIERS["small"], qlora_policy=folder)
        choice = TierChoice(tier, precision, place["device"], "benchmark")
        model, tokenizer = four_bit.prepare(choice)
    fresh_peak(place)
    computes = next(layer for _, layer in four_bit.four_bit_layers(model)).compute_dtype
    if place["device"] != "cpu" and computes != DTYPES[precision]:
        raise Skip(f"the 4-bit layers compute in {computes} though {precision} was asked for")
    data = rows_of(work, ("completion",), 4 * work.rows)
    with scratch_log() as log:
        options = {**settings_of(work, precision, work.rows), "optimizer": four_bit.OPTIMIZER}
        train_sft(model, tokenizer, data, SFTSettings(**options), log, progress=False)
        seconds = seconds_per_step(log, work)
    needed = flops.training(work.shape, work.rows, work.seq, work.seq // 2, full=False)
    row = measured(place, work, seconds, needed)
    row["note"] = f"NF4, 4-bit layers compute in {str(computes).removeprefix('torch.')}"
    changes = {"method": "qlora", "adapters": "fp32", "optimizer": "paged-adamw-8bit"}
    # what is not 4-bit is kept in bf16 or, for fp16, in fp32: see qlora.four_bit_options
    changes["weights"] = "bf16" if precision == "bf16" else "fp32"
    row |= calculated(place, work, "sft", precision, **changes)
    yield with_mfu(row, place, precision)


# ---- small helpers -------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_log() -> Iterator[Any]:
    """A RunLog in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True) as folder:
        yield runs.RunLog.create(Path(folder) / "run", {}, seed=0)


def fresh_peak(place: dict[str, Any]) -> None:
    """Forgets what building the model took."""
    gc.collect()
    if place["device"] != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
