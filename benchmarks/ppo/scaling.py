"""One PPO iteration of ours on models of several sizes: seconds, and the share of matmul peak.

    python benchmarks/ppo/scaling.py

Random Llamas; prompts of 16 tokens, answers of the given length (none ends early), one epoch of 4
minibatches, a reward model of the policy's size. Peak is what this machine reaches on large fp32
matrix products in the same run; the work of an iteration counts 2 FLOPs a parameter and token for
each forward and 4 for each backward pass, attention included.
"""

import argparse
import statistics

import course_utils  # noqa: F401  (sets the OpenMP variables before torch is imported)

# isort: split
import torch
import workload as w
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.training.ppo import PPOConfig, PPOTrainer, per_answer

# name: (hidden, layers, heads)
SIZES = {"1M": (128, 4, 4), "4M": (256, 4, 4), "16M": (384, 8, 6), "135M": (576, 30, 9)}
PROMPT = w.PROMPT_TOKENS
PASSES = 5  # in forward passes: decoding, the reference, the update (its backward counts twice)


def build(name: str) -> LlamaForCausalLM:
    hidden, layers, heads = SIZES[name]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=w.VOCABULARY if name != "135M" else 49_152,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads if name != "135M" else 3,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=w.PAD,
            eos_token_id=w.EOS,
        )
    ).eval()


def measure(name: str, batch: int, new: int, steps: int) -> tuple[dict[str, float], float]:
    torch.manual_seed(0)
    model = build(name)
    with torch.no_grad():  # no answer ends early
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
        model.lm_head.bias[w.EOS] = -1e4
        model.lm_head.bias.requires_grad_(False)
    trainer = PPOTrainer(
        model,
        per_answer(lambda prompt, answer: len(answer)),
        w.tokenizer(),
        [w.as_text(ids) for ids in w.prompt_ids(batch, 0)],
        PPOConfig(
            steps=steps + 1,
            rollouts_per_step=batch,
            epochs=1,
            minibatches=4,
            micro_batch=max(1, min(16, 2048 // (PROMPT + new))),
            max_new_tokens=new,
            learning_rate=1e-6,
            missing_eos_penalty=0.0,
        ),
    )
    rows = [step.stats for step in trainer][1:]
    parts = ("seconds", "rollout_seconds", "scoring_seconds", "update_seconds")
    seconds = {p: statistics.median(row[p] for row in rows) for p in parts}
    return seconds, PASSES * w.forward_flops(model, batch, PROMPT, new)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one warm-up")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="skip larger cells (estimated s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    top = w.peak_flops(torch.device("cpu"), torch.float32, 2048)
    print(f"matmul peak {top / 1e9:.0f} GFLOP/s on {options.threads} threads\n")
    print("| model | answers | new tokens | s an iteration | rollout / scoring / update s "
          "| tokens/s | share of peak |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name in SIZES:
        for batch, new in ((16, 16), (64, 16), (64, 64), (256, 64), (64, 256), (16, 256)):
            expected = PASSES * w.forward_flops(build(name), batch, PROMPT, new)
            if expected / (0.3 * top) > options.budget:
                print(f"| {name} | {batch} | {new} | not run: over {options.budget:.0f} s | | | |")
                continue
            found, flops = measure(name, batch, new, options.steps)
            split = " / ".join(
                f"{found[f'{p}_seconds']:.2f}" for p in ("rollout", "scoring", "update")
            )
            seconds = found["seconds"]
            print(
                f"| {name} | {batch} | {new} | {seconds:.2f} | {split} "
                f"| {batch * new / seconds:.0f} | {flops / seconds / top:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
