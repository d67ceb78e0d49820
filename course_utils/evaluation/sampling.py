"""Answers drawn from a policy, and how far the policy is from its reference on them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.evaluation.preferences import text_of
from course_utils.evaluation.statistics import Array, Estimate, estimate
from course_utils.generation import (
    Sampled,
    completion_texts,
    pad_left,
    padding_id,
    prompt_tokens,
    sample,
    stop_ids,
)
from course_utils.models import evaluating, parts_of
from course_utils.objectives.kl import exact_kl, kl_k1, kl_k3
from course_utils.objectives.likelihood import token_logprobs

_KL = ("k1", "k3", "exact")
_LOGITS = 1 << 24  # logits held at once per model (64 MB in float32)
_ROWS = 64  # answers of like length scored in one forward pass


@dataclass(frozen=True)
class Sequences:
    """S answers to each of P prompts, in the prompts' order; numbers are (P, S)."""

    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    lengths: Array  # tokens, end token included
    ended: Array  # 1 where the model ended the answer itself, 0 where it was cut off
    kl: dict[str, Array] | None  # "k1", "k3", "exact": nats per answer; None without a reference


@dataclass(frozen=True)
class KLEstimate:
    """KL(policy || reference) in nats per answer, three ways, each unbiased over sampled answers.

    k1, k3: from the sampled tokens' log-probabilities alone (objectives.kl). exact: at each
    position the KL over the whole vocabulary, summed along the sampled answer. It replaces the
    sampled token by its expectation (Rao-Blackwell), which lowers the variance; the report shows
    this one.
    """

    k1: Estimate
    k3: Estimate
    exact: Estimate

    @property
    def mean(self) -> float:
        return self.exact.mean

    @property
    def interval(self) -> tuple[float, float]:
        return self.exact.interval

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_json() for name in _KL}


def prompt_of(prompt: Any) -> Any:
    """What the chat template takes: strings and message lists as they are, else `.text`."""
    return prompt if isinstance(prompt, str | list) else prompt.text


def question(prompt: Any) -> str:
    """What the user says: the words that a reward or gold function gets as the prompt."""
    return text_of(prompt_of(prompt), "user")


def _by_length(drawn: Sampled) -> Iterator[tuple[Tensor, Sampled]]:
    """(row numbers, those rows without padding that none of them needs), shortest answers first."""
    for rows in drawn.lengths.argsort().split(_ROWS):
        longest = int(drawn.lengths[rows].max())
        first = int(drawn.prompt_mask[rows].any(dim=0).int().argmax())
        yield (
            rows,
            replace(
                drawn,
                prompt_ids=drawn.prompt_ids[rows, first:],
                prompt_mask=drawn.prompt_mask[rows, first:],
                completion_ids=drawn.completion_ids[rows, :longest],
                completion_mask=drawn.completion_mask[rows, :longest],
            ),
        )


def _sequence_kl(
    policy: Any, reference: Any, drawn: Sampled, temperature: float
) -> dict[str, Tensor]:
    """k1, k3 and exact KL of each sampled answer, (B,) nats, one forward pass each."""
    found: dict[str, Tensor] = {}
    for rows, part in _by_length(drawn):
        for name, values in _part_kl(policy, reference, part, temperature).items():
            whole = found.setdefault(name, values.new_zeros(len(drawn.lengths)))
            whole[rows] = values
    return found


def _part_kl(policy: Any, reference: Any, drawn: Sampled, temperature: float) -> dict[str, Tensor]:
    real = drawn.completion_mask  # (B, C)
    start = drawn.prompt_ids.shape[1]
    hidden = []
    for model in (policy, reference):
        states = parts_of(model).hidden(drawn.input_ids, drawn.attention_mask)  # (B, T, D)
        hidden.append(states[:, start - 1 : -1][real])  # (N, D), one row a completion token
    ids = drawn.completion_ids[real]  # (N,)
    parts, ref_parts = parts_of(policy), parts_of(reference)
    found: dict[str, list[Tensor]] = {"k1": [], "k3": [], "exact": []}
    rows = max(1, _LOGITS // parts.config.vocab_size)
    for states, ref_states, tokens in zip(*(x.split(rows) for x in (*hidden, ids)), strict=True):
        logits, ref_logits = parts.logits(states), ref_parts.logits(ref_states)  # (n, V)
        logprobs = token_logprobs(logits, tokens, temperature)
        ref_logprobs = token_logprobs(ref_logits, tokens, temperature)
        found["k1"].append(kl_k1(logprobs, ref_logprobs))
        found["k3"].append(kl_k3(logprobs, ref_logprobs))
        found["exact"].append(exact_kl(logits, ref_logits, temperature))
    return {
        name: torch.zeros(real.shape, dtype=torch.float32, device=real.device)
        .masked_scatter(real, torch.cat(values).float())
        .sum(dim=1)
        for name, values in found.items()
    }


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    samples_per_prompt: int = 1  # S, >= 1
    temperature: float = 1.0  # >= 0; 0 takes the likeliest token
    max_new_tokens: int = 48  # >= 1
    seed: int = 0
    batch_size: int = 128  # answers written at once, >= 1

    def check(self, prompts: int, reference: Any) -> None:
        if prompts < 1 or self.samples_per_prompt < 1 or self.batch_size < 1:
            raise CourseError(
                f"cannot evaluate on {prompts} prompts with {self.samples_per_prompt} samples each "
                f"in batches of {self.batch_size}; all three must be at least 1"
            )
        if reference is not None and not self.temperature > 0:
            raise CourseError(
                "the KL to the reference is an average over samples from the policy, so the "
                f"temperature must be > 0 (got {self.temperature}); leave out the reference to "
                "evaluate greedy answers"
            )


def _batches(
    model: Any, tokenizer: Any, rows: list[list[int]], settings: Sampling
) -> Iterator[tuple[list[int], Sampled]]:
    """(row numbers, their completions), short prompts first so that little is padded."""
    generator = torch.Generator().manual_seed(settings.seed)
    width = max(1, settings.max_new_tokens)
    uniforms = torch.rand(len(rows), width, generator=generator, dtype=torch.float64)
    device = next(parts_of(model).trunk.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), settings.batch_size):
        chosen = order[first : first + settings.batch_size]
        batch = pad_left([rows[i] for i in chosen], padding_id(tokenizer)).to(device)
        yield (
            chosen,
            sample(
                model,
                batch.input_ids,
                batch.attention_mask,
                max_new_tokens=settings.max_new_tokens,
                eos_token_ids=stop_ids(tokenizer, model),
                pad_token_id=padding_id(tokenizer),
                temperature=settings.temperature,
                uniforms=uniforms[chosen],
            ),
        )


def draw(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    settings: Sampling,
    reference: Any = None,
) -> Sequences:
    """Samples answers; with a reference also each answer's KL to it at the sampling temperature.

    Answer s to prompt i uses its own random numbers, whatever the batch size, and two models given
    the same seed use the same ones, so that their difference is less noisy. With one sample a
    prompt the texts are those of `generate_texts`.

    Raises: CourseError for no prompts, nonsensical settings, or a reference with temperature 0.
    """
    settings.check(len(prompts), reference)
    shape = (len(prompts), settings.samples_per_prompt)
    limit = getattr(parts_of(model).config, "max_position_embeddings", None)
    room = None if limit is None else max(1, limit - settings.max_new_tokens)
    encoded = prompt_tokens(tokenizer, [prompt_of(p) for p in prompts], room)
    rows = [row for row in encoded for _ in range(shape[1])]
    texts = [""] * len(rows)
    numbers = {name: np.zeros(len(rows)) for name in ("lengths", "ended", *_KL)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for network in (model, reference):
            if network is not None:
                stack.enter_context(evaluating(network))
        for chosen, drawn in _batches(model, tokenizer, rows, settings):
            found = {"lengths": drawn.lengths, "ended": drawn.ended}
            if reference is not None:
                found |= _sequence_kl(model, reference, drawn, settings.temperature)
            for name, values in found.items():
                numbers[name][chosen] = values.double().cpu().numpy()
            words = completion_texts(tokenizer, drawn.completion_ids, drawn.completion_mask)
            for i, text in zip(chosen, words, strict=True):
                texts[i] = text
    tables = {name: values.reshape(shape) for name, values in numbers.items()}
    return Sequences(
        prompts=tuple(question(p) for p in prompts),
        texts=tuple(tuple(texts[i : i + shape[1]]) for i in range(0, len(texts), shape[1])),
        lengths=tables["lengths"],
        ended=tables["ended"],
        kl=None if reference is None else {name: tables[name] for name in _KL},
    )


def kl_of(sequences: Sequences, seed: int = 0) -> KLEstimate | None:
    """The KL's estimates over prompts, None where no reference was given."""
    if sequences.kl is None:
        return None
    return KLEstimate(**{name: estimate(v, seed=seed) for name, v in sequences.kl.items()})


def kl_to_reference(
    model: Any,
    reference: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    samples_per_prompt: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    batch_size: int = 128,
) -> KLEstimate:
    """KL(model || reference) in nats per answer, from samples of the model (see KLEstimate).

    Both models' logits are divided by the temperature: the distance is between the distributions
    that are sampled. The tokens counted are those of the answer up to and including its end.
    """
    settings = Sampling(samples_per_prompt, temperature, max_new_tokens, seed, batch_size)
    found = kl_of(draw(model, tokenizer, prompts, settings, reference), seed)
    assert found is not None  # a reference was given
    return found
