"""`course memory MODEL`: prints the estimate's terms, its assumptions, and which GPUs it fits."""

import argparse
import json
from typing import Any

from course_utils.memory.catalogue import MODELS, find_shape
from course_utils.memory.estimate import Breakdown, estimate
from course_utils.memory.gpus import GPUS, answers
from course_utils.memory.recipe import CHOICES, RECIPES, recipe

GB = 10**9
FIELDS = ("weights", "autocast", "optimizer", "attention", "logits", "rank", "targets", "rollouts")
KINDS = ("weights", "autocast", "optimizer", "attention", "logits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `course memory`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help='"llama-65b", "65B", a Hub id, or a directory; --list')
    add("--recipe", default="qlora", metavar="NAME", help=f"{', '.join(RECIPES)} (default qlora)")
    add("--seq", type=int, default=512, metavar="T", help="tokens a row (default 512)")
    add("--batch", type=int, default=1, metavar="B", help="rows at a time (default 1)")
    add("--completion", type=int, metavar="C", help="tokens with logits (default: all)")
    add("--rank", type=int, metavar="R", help="of LoRA")
    add("--targets", metavar="LIST", help="matrices with LoRA: q_proj,v_proj or all-linear")
    for field in KINDS:
        add(f"--{field}", metavar="KIND", help=", ".join(CHOICES[field]))
    add("--rollouts", type=int, metavar="N", help="answers sampled at a time, with PPO")
    add(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        help="keep each block's input only (default: as the recipe says)",
    )
    add("--gpu", action="append", metavar="NAME", help=f"{', '.join(GPUS)} (default: all)")
    add("--offline", action="store_true", help="never ask the Hub for a config")
    add("--json", action="store_true", help="print JSON, in bytes")


def main(args: argparse.Namespace) -> int:
    """Runs the command. Raises: CourseError for anything in it that cannot be."""
    changes: dict[str, Any] = {
        field: getattr(args, field) for field in FIELDS if getattr(args, field) is not None
    }
    if changes.get("targets", "all-linear") != "all-linear":
        changes["targets"] = tuple(changes["targets"].split(","))
    if args.checkpointing is not None:
        changes["checkpointing"] = args.checkpointing
    chosen = recipe(args.recipe, **changes)
    shape = find_shape(args.model, online=not args.offline)
    found = estimate(shape, chosen, args.seq, args.batch, args.completion)
    gpus = answers(found, args.gpu or tuple(GPUS))
    print(json.dumps(as_dict(found, gpus), indent=2) if args.json else as_text(found, gpus))
    return 0


def as_dict(found: Breakdown, gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything in bytes, ready for JSON."""
    return {
        "model": found.shape.name,
        "parameters": found.shape.parameters,
        "recipe": {name: getattr(found.recipe, name) for name in ("name", "task", "method")},
        "seq": found.seq,
        "batch": found.batch,
        "completion": found.completion,
        "moment": found.moment,
        "terms": found.terms,
        "peak": found.peak,
        "cuda_context": found.context,
        "fragmentation": found.fragmentation,
        "total": found.total,
        "paged": found.paged,
        "moments": {name: sum(terms.values()) for name, terms in found.moments.items()},
        "assumptions": found.assumptions,
        "gpus": gpus,
    }


def as_text(found: Breakdown, gpus: list[dict[str, Any]]) -> str:
    """The table, the assumptions and the GPUs, as lines."""
    shape, made = found.shape, found.recipe
    lines = [
        f"{shape.name}, {shape.parameters / GB:.2f} billion parameters, recipe {made.name}, "
        f"{found.seq} tokens, batch {found.batch}",
        f"Worst moment: {found.moment}",
        "",
    ]
    rows = [*found.terms.items()]
    rows += [("= peak of the tensors", found.peak), ("CUDA context", found.context)]
    rows += [("fragmentation allowance", found.fragmentation), ("= needed", found.total)]
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:{width}}  {_gb(size):>10} GB" for name, size in rows]
    if found.paged:
        lines.append(f"  {'(paged optimizer states)':{width}}  {_gb(found.paged):>10} GB")
    lines += ["", "  GPU       memory     fits  largest batch"]
    for row in gpus:
        size = f"{row['gib'] * 2**30 / GB:.1f} GB"
        fit = "yes" if row["fits"] else "no"
        lines.append(f"  {row['gpu']:8}  {size:>8}  {fit:>5}  {row['largest_batch'] or '-':>13}")
    lines += ["", "Assumptions:"]
    lines += [f"- {sentence}" for sentence in found.assumptions]
    if shape.name in MODELS:
        lines.append("- The model's numbers are from the built-in table.")
    return "\n".join(lines)


def _gb(size: int) -> str:
    return f"{size / GB:,.3f}" if size < 100 * GB else f"{size / GB:,.1f}"
