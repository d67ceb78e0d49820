"""LoRA adapters on one base: is merging exact, what do unmerged ones cost, how fast is a swap?

    python benchmarks/adapters.py [--model tiny] [--adapters 3] [--rank 8] [--repeats 15]

All variants are timed in turn within each round, on one thread, so that a busy machine slows all
alike; the ratios to the plain base are the result. CPU seconds beside wall-clock ones.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import course_utils  # noqa: F401  (sets the OpenMP variables before torch is imported)

# isort: split
import torch

from course_utils.composition import METHODS, Adapter, AdapterSet
from course_utils.generation import generate_texts
from course_utils.models import load_policy

Timed = dict[str, list[tuple[float, float]]]  # name -> (wall, CPU) seconds of each round


def random_adapter(base: Any, rank: int, seed: int) -> Adapter:
    """A LoRA on every linear map, as large as trained ones are: B of about 0.02."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = get_peft_model(copy.deepcopy(base), config)
    adapter = Adapter.of(model)
    for name, tensor in adapter.weights.items():
        if "lora_B" in name:
            tensor.normal_(std=0.02)
    return adapter


@torch.no_grad()
def exactness(adapters: AdapterSet, ids: torch.Tensor) -> None:
    """Largest |difference| of a logit, merged against unmerged, beside the logits' own size:
    float32 keeps seven digits. Stops if unmerging is not exact."""
    plain = adapters.model(ids).logits
    print("| weights | largest logit | change by the adapters | merged − unmerged | relative |")
    print("|---|---|---|---|---|")
    first, *others = adapters.names
    choices: list[dict[str, float]] = [
        {first: 1.0},
        dict.fromkeys(adapters.names, 1.0),
        {first: 1.5, **dict.fromkeys(others, -0.5)},
    ]
    for weights in choices:
        adapters.set_weights(weights)
        before = adapters.model(ids).logits
        adapters.merge()
        merged = adapters.model(ids).logits
        adapters.unmerge()
        if not torch.equal(adapters.model(ids).logits, before):
            raise SystemExit("unmerging did not give the model back bit for bit")
        largest, change, error = (
            float(cell.abs().max()) for cell in (before, before - plain, merged - before)
        )
        said = " ".join(f"{w:g}" for w in weights.values())
        print(f"| {said} | {largest:.1f} | {change:.2f} | {error:.1e} | {error / largest:.1e} |")
    print("unmerged again: every logit bit for bit as before")
    adapters.set(None)


def rounds(work: dict[str, Callable[[], Any]], repeats: int) -> Timed:
    """Each round runs every piece of work once, in turn; the first round does not count."""
    found: Timed = {name: [] for name in work}
    for number in range(repeats + 1):
        for name, function in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                found[name].append(spent)
    return found


def report(found: Timed, reference: str | None = None) -> None:
    """Medians, and the median over rounds of the ratio to the reference in the same round."""
    for name, spent in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*spent, strict=True))
        line = f"{name:<28}{1e3 * wall:>10.2f}{1e3 * cpu:>10.2f}"
        if reference is not None:
            pairs = list(zip(spent, found[reference], strict=True))
            by_wall = statistics.median(a[0] / b[0] for a, b in pairs)
            by_cpu = statistics.median(a[1] / b[1] for a, b in pairs)
            line += f"{by_wall:>12.2f}{by_cpu:>12.2f}"
        print(line)


def latency(base: Any, made: list[Adapter], tokenizer: Any, ids: torch.Tensor, n: int) -> None:
    """The same model plain, with one adapter, with all of them, and merged."""
    variants: dict[str, Any] = {"plain base": base}
    for label, count in (("1 adapter", 1), (f"{len(made)} adapters", len(made))):
        adapters = AdapterSet(copy.deepcopy(base))
        for number, adapter in enumerate(made):
            adapters.add(f"a{number}", adapter)
        adapters.set_weights({f"a{number}": 0.5 for number in range(count)})
        variants[label] = adapters.model
        if count > 1:
            adapters.combine("cat", {f"a{i}": 0.5 for i in range(count)})
            once = AdapterSet(copy.deepcopy(base))
            once.add("cat", adapters.take("cat"))
            once.set("cat")
            variants[f"{count} adapters as one (cat)"] = once.model
            twin = AdapterSet(copy.deepcopy(base))
            twin.add("cat", adapters.take("cat"))
            twin.set("cat")
            twin.merge()
            variants["merged, layers still there"] = twin.model
            variants["merged copy"] = adapters.merged_copy()
    prompts = ["tell me about lions ."] * 8
    pieces = {
        f"forward of {tuple(ids.shape)}": lambda model: model(ids),
        "answers of 32 tokens to 8": lambda model: generate_texts(
            model, tokenizer, prompts, max_new_tokens=32, seed=1
        ),
    }
    for title, piece in pieces.items():
        print(f"\n{title:<28}{'wall ms':>10}{'CPU ms':>10}{'wall ratio':>12}{'CPU ratio':>12}")
        work = {name: (lambda p=piece, m=model: p(m)) for name, model in variants.items()}
        with torch.inference_mode():
            report(rounds(work, n), "plain base")


def changes(adapters: AdapterSet, repeats: int) -> None:
    """What it takes to change the model: a swap, a slider, a merge, a combination."""
    names = adapters.names
    state = {"turn": 0}

    def swap() -> None:
        state["turn"] += 1
        adapters.set(names[state["turn"] % len(names)])

    def slide() -> None:
        state["turn"] += 1
        adapters.set_weights(dict.fromkeys(names, 0.1 + state["turn"] / 100))

    def merge() -> None:
        adapters.merge()
        adapters.unmerge()

    def combine(method: str) -> None:
        adapters.combine("made", dict.fromkeys(names, 0.5), method)
        adapters.delete("made")

    work: dict[str, Callable[[], Any]] = {"swap": swap, "slider": slide, "merge + unmerge": merge}
    work |= {f"combine: {method}": (lambda m=method: combine(m)) for method in METHODS}
    print(f"\n{'to change the model':<28}{'wall ms':>10}{'CPU ms':>10}")
    report(rounds(work, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny", help="a tier, a Hub id or a directory")
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base, tokenizer = load_policy(given.model, device="cpu")
    ids = torch.randint(5, base.config.vocab_size, (8, 64))
    made = [random_adapter(base, given.rank, seed) for seed in range(given.adapters)]
    adapters = AdapterSet(copy.deepcopy(base))
    for number, adapter in enumerate(made):
        adapters.add(f"a{number}", adapter)
    print(f"{given.model}, {given.adapters} adapters of rank {given.rank} on all linear maps, fp32")
    exactness(adapters, ids)
    latency(base, made, tokenizer, ids, given.repeats)
    changes(adapters, max(3, given.repeats // 3))


if __name__ == "__main__":
    main()
