"""The workload that every trainer of this benchmark gets, and how it is timed.

A random GPT-2 (4 layers, hidden 256, vocabulary 2000, 3.7M parameters), 64 prompts of 16 tokens,
24 new tokens each, 4 epochs of 4 minibatches: 16 optimizer updates an iteration. All of a trainer's
models have this size. Nothing here imports ours or a peer's library: it runs in every environment.
"""

import argparse
import gc
import json
import math
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, PreTrainedTokenizerFast

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 16, 24
EPOCHS, MINIBATCHES = 4, 4
VOCABULARY = 2000
PAD, EOS = 0, 1
GOOD = range(2, 202)  # the learning task: a tenth of the vocabulary is worth writing
LEARNING_RATE, BETA, TEMPERATURE = 3e-4, 0.02, 1.0
CLIP, VALUE_CLIP, VF_COEF, GAMMA, LAM = 0.2, 0.2, 0.1, 1.0, 0.95


def options(description: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", choices=("time", "learn"), default="time")
    parser.add_argument("--iterations", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lora", action="store_true", help="ours only")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    return chosen


def config(labels: int = 0) -> GPT2Config:
    more = {"num_labels": labels} if labels else {}
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=256,
        n_layer=4,
        n_head=4,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **more,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token: decoding and tokenising again gives the same ids."""
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, VOCABULARY))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %} <eos>{% else %} {% endif %}{% endfor %}"
    )
    return made


def prompt_ids(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (count, PROMPT_TOKENS), generator=generator).tolist()


def as_text(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def share_of_good(ids: list[int]) -> float:
    """The learning task's reward: ten times the share of good tokens, about 1 at the start."""
    return 10 * sum(i in GOOD for i in ids) / max(len(ids), 1)


def share_of_good_text(text: str) -> float:
    return share_of_good([int(word[1:]) for word in text.split() if word.startswith("w")])


class Meter:
    """Seconds of each iteration, split into its parts, printed as one JSON line each."""

    def __init__(self) -> None:
        self.imports_mib = peak_mib()
        self.parts: dict[str, list[float]] = {}
        self.row: dict[str, Any] = {}
        self.number = 0
        self._start()

    def _start(self) -> None:
        self.began = time.perf_counter(), time.process_time()
        self.parts = {}

    def timed(
        self, part: str, function: Callable[..., Any], only_without_grad: bool = False
    ) -> Callable[..., Any]:
        """The function with its seconds booked on `part` ("update" is what no part has)."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if only_without_grad and torch.is_grad_enabled():
                return function(*args, **kwargs)
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = self.parts.setdefault(part, [0.0, 0.0])
                spent[0] += time.perf_counter() - wall
                spent[1] += time.process_time() - cpu

        return call

    def iteration(self, **values: float) -> None:
        """Ends an iteration."""
        wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        self.number += 1
        row: dict[str, Any] = {"iteration": self.number, "wall": wall, "cpu": cpu, **values}
        for part in ("rollout", "scoring"):
            row[f"{part}_wall"], row[f"{part}_cpu"] = self.parts.get(part, [math.nan, math.nan])
        for unit in ("wall", "cpu"):
            row[f"update_{unit}"] = row[unit] - row[f"rollout_{unit}"] - row[f"scoring_{unit}"]
        print("ROW " + json.dumps(row), flush=True)
        self._start()

    def finish(self, policy_parameters: int) -> None:
        print(
            "END "
            + json.dumps(
                {
                    "imports_mib": self.imports_mib,
                    "peak_mib": peak_mib(),
                    "models_held": parameters_alive() / policy_parameters,
                    "torch": torch.__version__,
                }
            ),
            flush=True,
        )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parameters_alive() -> int:
    """Numbers in all parameters of this process, shared storage once."""
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.nn.Module):
            for parameter in thing._parameters.values():
                if parameter is not None:
                    found[parameter.data_ptr()] = parameter.numel()
    return sum(found.values())


# ---- work and peak -------------------------------------------------------------------------------


def forward_flops(model: Any, rows: int, prompt: int, new: int) -> float:
    """FLOPs of a Llama's forward pass over prompts and answers, the head on the answers only."""
    config = model.config
    embedding = config.vocab_size * config.hidden_size  # tied with the head
    trunk = sum(p.numel() for p in model.parameters()) - embedding
    length = prompt + new
    # scores and weighted sum: 2 * 2 * hidden for each pair of tokens, half of which are masked
    attention = config.num_hidden_layers * 2 * config.hidden_size * length**2
    return rows * (2 * trunk * length + 2 * embedding * new + attention)


def peak_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a square matrix product: the best of several."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(12):
        began = clock(device)
        a @ b
        best = max(best, 2 * size**3 / (clock(device) - began))
    return best


def clock(device: torch.device) -> float:
    """Seconds, after all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
