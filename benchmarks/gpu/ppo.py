"""PPO on one GPU: tokens/s of rollout and update, share of peak, memory, HF generate beside it.

    python benchmarks/gpu/ppo.py                          all, about 3 minutes on an H100
    python benchmarks/gpu/ppo.py --only 135M --full
    python benchmarks/gpu/ppo.py --device cpu --smallest  seconds, to see that it runs

Random weights of SmolLM2-135M's and SmolLM2-1.7B's shape (the 1.7B one with LoRA unless --full),
prompts of 64 tokens, answers that do not end early. Peak is what the device reaches on large
matrix products of the same precision. Writes benchmarks/results/ppo-<gpu>.json.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import course_utils  # noqa: F401  (sets the OpenMP variables before torch is imported)

# isort: split
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "ppo"))
import workload as w

from course_utils.training.ppo import PPOConfig, PPOTrainer, per_answer

PROMPT = 64
SHAPES = {  # name: (hidden, layers, heads, key-value heads, feed-forward, vocabulary)
    "smallest": (64, 2, 4, 2, 128, w.VOCABULARY),
    "135M": (576, 30, 9, 3, 1536, 49_152),
    "1.7B": (2048, 24, 32, 32, 8192, 49_152),
}


def build(name: str, device: torch.device) -> LlamaForCausalLM:
    hidden, layers, heads, key_values, feed_forward, vocabulary = SHAPES[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        intermediate_size=feed_forward,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=w.PAD,
        eos_token_id=w.EOS,
    )
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(config).eval()
        bias = torch.zeros(vocabulary)
        bias[w.EOS] = -1e4  # no answer ends early
        bias[w.VOCABULARY :] = -1e4  # words that the tokenizer does not have
        model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return model


def hf_generate(model: Any, rows: int, new: int, precision: str) -> float:
    """Seconds of Transformers' own generate for the same batch; the second of two."""
    device = model.device
    ids = torch.tensor([r * 4 for r in w.prompt_ids(rows, 1)], device=device)[:, :PROMPT]
    seconds = 0.0
    for _ in range(2):
        began = w.clock(device)
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=new,
                min_new_tokens=new,
            )
        seconds = w.clock(device) - began
    return seconds


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def measure(
    name: str, full: bool, rows: int, new: int, precision: str, device: torch.device, top: float
) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model: Any = build(name, device)
    found: dict[str, Any] = {"model": name, "training": "full" if full else "LoRA r=16"}
    found |= {"answers": rows, "new_tokens": new, "precision": precision}
    flops = w.forward_flops(model, rows, PROMPT, new)
    hf = hf_generate(model, rows, new, precision)
    found["hf_generate_tokens_s"] = rows * new / hf
    if not full:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    epochs = 1
    trainer = PPOTrainer(
        model,
        per_answer(lambda prompt, answer: len(answer)),
        w.tokenizer(),
        [w.as_text((ids * 4)[:PROMPT]) for ids in w.prompt_ids(rows, 0)],
        PPOConfig(
            steps=3,
            rollouts_per_step=rows,
            epochs=epochs,
            minibatches=min(4, rows),
            micro_batch=min(16, rows),
            max_new_tokens=new,
            learning_rate=1e-6,
            missing_eos_penalty=0.0,
            precision=precision,
        ),
    )
    row = [step.stats for step in trainer][-1]
    found["rollout_tokens_s"] = rows * new / row["rollout_seconds"]
    found["rollout_times_hf"] = found["rollout_tokens_s"] / found["hf_generate_tokens_s"]
    found["update_tokens_s"] = epochs * rows * (PROMPT + new) / row["update_seconds"]
    backward = 2 if full else 1  # frozen weights have no gradient of their own
    found["update_share_of_peak"] = epochs * flops * (1 + backward) / row["update_seconds"] / top
    found["seconds"] = row["seconds"]
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=[name for name in SHAPES if name != "smallest"])
    parser.add_argument("--full", action="store_true", help="full fine-tuning of the 1.7B model")
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu --smallest tries the script itself")
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else "cpu"
    precision = "fp32"
    if cuda:  # a T4 (7.5) has no bf16 of its own
        precision = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    top = w.peak_flops(device, DTYPES[precision], 8192 if cuda else 512)
    print(f"{name}: {top / 1e12:.3g} TFLOP/s in {precision} on matrix products\n")
    shapes = ["smallest"] if options.smallest else [options.only or "135M"]
    shapes += [] if options.smallest or options.only else ["1.7B"]
    sizes = ((4, 8),) if options.smallest else ((64, 128), (256, 128), (64, 512))
    results = []
    for shape in shapes:
        for rows, new in sizes:
            full = shape != "1.7B" or options.full
            try:
                found = measure(shape, full, rows, new, precision, device, top)
            except torch.OutOfMemoryError as error:
                found = {"model": shape, "answers": rows, "new_tokens": new, "error": str(error)}
            results.append(found)
            print(json.dumps(found), flush=True)
    if cuda:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / f"ppo-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
        versions = {"torch": torch.__version__, "device": name, "peak_flops": top}
        file.write_text(json.dumps({**versions, "runs": results}, indent=1) + "\n")
        print(f"written to {file}")


if __name__ == "__main__":
    main()
