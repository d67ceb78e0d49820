"""Seconds of one PPO step on random models of the embedded world's shape, split into its parts.

python benchmarks/ppo_iteration.py --threads 2
"""

import argparse
import statistics
from typing import Any

import course_utils  # noqa: F401  (sets the OpenMP variables before torch is imported)

# isort: split
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from course_utils.training.ppo import PPOConfig, PPOTrainer
from course_utils.training.reward_model import RewardModel

VOCABULARY = 1900


def build_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|unk|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
    names = specials + [f"w{i}" for i in range(VOCABULARY - len(specials))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, "<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=specials[4:],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|user|> {{ m['content'] }} {% endfor %}<|assistant|> "
    )
    return tokenizer


def build_config(hidden: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=3,
        num_labels=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after one warm-up")
    parser.add_argument("--rollouts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=40, help="tokens of an answer at most")
    parser.add_argument("--end", type=float, default=0.03, help="chance of EOS at each token")
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=PPOConfig.micro_batch)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = build_config(options.hidden, options.layers)
    policy = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # end answers at about the wanted rate: a constant first hidden unit
        bias = torch.logit(torch.tensor(options.end)) + torch.log(torch.tensor(float(VOCABULARY)))
        policy.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
        policy.lm_head.bias[3] = bias
    prompts = [" ".join(f"w{(7 * i + j) % 1800}" for j in range(6 + i % 9)) for i in range(400)]
    trainer = PPOTrainer(
        policy,
        RewardModel(LlamaForSequenceClassification(config).eval(), tokenizer),
        tokenizer,
        prompts,
        PPOConfig(
            steps=options.steps + 1,
            rollouts_per_step=options.rollouts,
            max_new_tokens=options.tokens,
            minibatches=options.minibatches,
            micro_batch=options.micro_batch,
            precision=options.precision,
            learning_rate=1e-5,
        ),
    )
    print(f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f}M parameters", end=", ")
    print(f"{options.rollouts} answers of up to {options.tokens} tokens, {options.threads} threads")
    print("step   tokens/answer      rollout      scoring       update        total  (wall|CPU s)")
    kept: dict[str, list[tuple[float, float]]] = {}
    for step in trainer:
        parts = dict(trainer.timings)
        parts["total"] = tuple(sum(values) for values in zip(*parts.values(), strict=True))
        line = "".join(f"  {wall:5.2f}|{cpu:5.2f}" for wall, cpu in parts.values())
        print(f"{step.number:4d}  {step.stats['completion_tokens']:12.1f} {line}", flush=True)
        if step.number > 1:
            for name, pair in parts.items():
                kept.setdefault(name, []).append(pair)
    for which, index in (("wall", 0), ("CPU", 1)):
        medians = {n: statistics.median(p[index] for p in pairs) for n, pairs in kept.items()}
        best = min(pair[index] for pair in kept["total"])
        shown = ", ".join(f"{name} {value:.2f}" for name, value in medians.items())
        print(f"median {which} seconds: {shown}; best total {best:.2f}")


if __name__ == "__main__":
    main()
