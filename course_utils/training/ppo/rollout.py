"""Rollouts: prompts are drawn, answers sampled, and scored by the reference and the reward."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError, DataError
from course_utils.generation import (
    Prompt,
    Sampled,
    completion_texts,
    pad_left,
    padding_id,
    prompt_tokens,
    sample,
    stop_ids,
)
from course_utils.models import PolicyWithValue, Reference, chosen_hidden, parts_of
from course_utils.objectives import token_logprobs
from course_utils.training.ppo.config import PPOConfig
from course_utils.training.ppo.processes import Processes
from course_utils.training.ppo.rewards import Answers, Scorer, checked_scores
from course_utils.training.ppo.sequences import (
    Sequences,
    autocast,
    in_groups,
    micro_batches,
)

_LOGITS = 2**25  # logits held at once when nothing is trained: 128 MiB in fp32


# ---- prompts -----------------------------------------------------------------------------------


def as_prompts(prompts: Any) -> list[Prompt]:
    """Strings, message lists, or a Dataset with a "prompt" column -> list of prompts.

    Raises: DataError for no prompts, a missing column, an empty or odd prompt (with its number).
    """
    if hasattr(prompts, "column_names"):
        if "prompt" not in prompts.column_names:
            raise DataError(
                f'the prompt dataset has the columns {prompts.column_names} and no "prompt"; '
                'rename one of them: dataset.rename_column("question", "prompt")'
            )
        prompts = prompts["prompt"]
    if isinstance(prompts, str):
        raise DataError(f"prompts must be a list of prompts, got one string: {prompts!r}")
    found: list[Prompt] = list(prompts)
    if not found:
        raise DataError("there are no prompts to sample answers to: the list is empty")
    for number, prompt in enumerate(found):
        if not isinstance(prompt, str | list) or not prompt_text(prompt).strip():
            raise DataError(
                f"prompt {number} is {prompt!r}: a prompt is a non-empty string or a list of "
                "messages; drop that row"
            )
    return found


def prompt_text(prompt: Prompt) -> str:
    """What a reward function gets as the prompt: the user's words; of a longer chat all turns."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


class PromptStream:
    """Draws prompts in a new seeded order each epoch; `drawn` is its whole state."""

    def __init__(
        self, prompts: Any, tokenizer: Any, config: PPOConfig, context: int | None
    ) -> None:
        self.prompts = as_prompts(prompts)
        self.texts = [prompt_text(prompt) for prompt in self.prompts]
        room = None if context is None else context - config.max_new_tokens
        if room is not None and room < 1:
            raise CourseError(
                f"max_new_tokens = {config.max_new_tokens} leaves no room for a prompt in the "
                f"model's context of {context} tokens; lower it"
            )
        limits = [limit for limit in (room, config.max_prompt_tokens) if limit is not None]
        self.tokens = prompt_tokens(
            tokenizer, self.prompts, min(limits, default=None), config.overlong_prompts
        )
        self._seed = config.seed
        self._order: tuple[int, list[int]] = (-1, [])  # (epoch, permutation)
        self.drawn = 0  # prompts handed out so far

    def draw(self, count: int) -> list[int]:
        """The next `count` prompt numbers; an epoch ends inside a batch if it must."""
        chosen = []
        for position in range(self.drawn, self.drawn + count):
            epoch, place = divmod(position, len(self.prompts))
            if self._order[0] != epoch:
                generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
                order = torch.randperm(len(self.prompts), generator=generator).tolist()
                self._order = (epoch, order)
            chosen.append(self._order[1][place])
        self.drawn += count
        return chosen


# ---- the batch ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Rollouts:
    """One step's answers with all that is known about them; (B, C) tensors are 0 off the mask."""

    prompts: list[str]
    completions: list[str]
    sequences: Sequences
    mask: Tensor  # (B, C) bool, True on the answer's tokens, EOS included
    ended: Tensor  # (B,) bool: EOS was sampled; False: cut at max_new_tokens
    logprobs: Tensor  # (B, C) log π_old(a_t|s_t), nats
    ref_logprobs: Tensor  # (B, C) log π_ref(a_t|s_t), nats
    values: Tensor  # (B, C) V(s_t)
    scores: Tensor  # (B,) what the reward says, before any penalty
    entropy: float  # mean over tokens of the sampling policy's entropy, nats
    logprob_gap: float = 0.0  # max |captured - recomputed| log-probability; 0 if not recomputed
    disagreement: float | None = None  # mean std among an ensemble's members
    gold: list[float] | None = None
    last_values: Tensor | None = None  # (B,) V(s_T) after a cut answer's last token, else 0
    # filled by advantages.py
    rewards: Tensor | None = None  # (B, C) r_t: -β KL, plus the score on the last token
    advantages: Tensor | None = None  # (B, C) Â_t, whitened
    returns: Tensor | None = None  # (B, C) R_t, not whitened

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, tokenizer: Any, limit: int | None = None) -> list[dict[str, Any]]:
        """The first `limit` answers as plain dicts, one list entry per token: for a RunLog."""
        words: dict[int, str] = {}
        per_token = {
            "logprobs": self.logprobs,
            "ref_logprobs": self.ref_logprobs,
            "kl": self.logprobs - self.ref_logprobs,
            "values": self.values,
            "advantages": self.advantages,
            "rewards": self.rewards,
        }
        result = []
        for i in range(len(self) if limit is None else min(limit, len(self))):
            start, length = (
                int(x[i])
                for x in (self.sequences.prompt_lengths, self.sequences.completion_lengths)
            )
            ids = self.sequences.ids[i, start : start + length].tolist()
            for token in set(ids) - words.keys():
                words[token] = tokenizer.decode([token])
            row: dict[str, Any] = {
                "prompt": self.prompts[i],
                "completion": self.completions[i],
                "tokens": [words[token] for token in ids],
                "token_ids": ids,
                "score": float(self.scores[i]),
                "gold": None if self.gold is None else self.gold[i],
                "ended": bool(self.ended[i]),
            }
            for name, values in per_token.items():
                row[name] = None if values is None else values[i, :length].tolist()
            result.append(row)
        return result


# ---- making it ---------------------------------------------------------------------------------


def sample_answers(
    actor: PolicyWithValue,
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    config: PPOConfig,
    generator: torch.Generator,
    processes: Processes,
) -> Sampled:
    """Samples one answer per prompt, capturing log-probabilities, entropies and (shared) values.

    Of several processes each samples its share of the prompts, with its share of the random numbers
    that one process would draw, and gets the answers of all.
    """
    device = actor.policy.device
    batch = pad_left(prompt_ids, padding_id(tokenizer)).to(device)
    size = (len(prompt_ids), config.max_new_tokens)
    uniforms = torch.rand(size, generator=generator, dtype=torch.float64)
    with autocast(device, config.precision):
        sampled = sample(
            actor.policy,
            processes.share(batch.input_ids),
            processes.share(batch.attention_mask),
            max_new_tokens=config.max_new_tokens,
            eos_token_ids=stop_ids(tokenizer, actor.policy),
            pad_token_id=padding_id(tokenizer),
            temperature=config.temperature,
            uniforms=processes.share(uniforms),
            value_head=actor.values if actor.critic is None else None,
            with_entropy=True,
        )
    found = {f.name: getattr(sampled, f.name) for f in dataclasses.fields(sampled)}
    everyones = {n: processes.gather(rows) for n, rows in found.items() if rows is not None}
    return dataclasses.replace(sampled, **everyones)


def scoring_groups(
    sequences: Sequences, minibatches: Sequence[Tensor], config: PPOConfig, processes: Processes
) -> list[Tensor]:
    """Row numbers that are scored together, on this process.

    In half precision a matrix product depends a little on how many other rows there are. Scored in
    the very groups that the first epoch will use, the ratio (and the KL at the start) is exact.
    """
    if not config.recomputes:  # twice as many rows: without gradients they need half the memory
        every = torch.arange(len(sequences), device=sequences.ids.device)
        return list(micro_batches(sequences, processes.share(every), 2 * config.micro_batch))
    size = config.micro_batch
    shares = [processes.share(rows) for rows in minibatches]
    return [group for rows in shares for group in micro_batches(sequences, rows, size)]


def reference_logprobs(
    reference: Reference, sequences: Sequences, groups: Sequence[Tensor], config: PPOConfig
) -> Tensor:
    """log π_ref of the answers' tokens (B, C), at the sampling temperature."""

    def score(group: Sequences) -> Tensor:
        hidden = chosen_hidden(parts.trunk, group.ids, group.where)  # (N, D)
        tokens = group.ids.flatten()[group.where + 1]
        chunk = max(1, _LOGITS // parts.config.vocab_size)
        pairs = zip(hidden.split(chunk), tokens.split(chunk), strict=True)
        found = [token_logprobs(parts.logits(h), t, config.temperature) for h, t in pairs]
        return torch.cat(found).unsqueeze(-1)

    with reference.model() as model, autocast(sequences.ids.device, config.precision):
        parts = parts_of(model)
        return in_groups(sequences, groups, score).squeeze(-1)


def policy_scores(
    actor: PolicyWithValue, sequences: Sequences, groups: Sequence[Tensor], config: PPOConfig
) -> tuple[Tensor, Tensor]:
    """(log π, V) of the answers' tokens, each (B, C), by a forward pass without gradients."""

    def score(group: Sequences) -> Tensor:
        found = actor(group.ids, group.where, config.temperature)
        return torch.stack([found.logprobs, found.values], dim=-1)

    with torch.no_grad(), autocast(sequences.ids.device, config.precision):
        both = in_groups(sequences, groups, score)
    return both[..., 0], both[..., 1]


def values_after(actor: PolicyWithValue, sequences: Sequences, ended: Tensor) -> Tensor:
    """V(s_T) (B,): the value after the last token of answers that were cut, 0 for ended ones."""
    values = torch.zeros(len(sequences), device=sequences.ids.device)
    cut = (~ended).nonzero().squeeze(1)
    if len(cut):
        group = sequences.rows(cut)
        width = group.ids.shape[1]
        last = torch.arange(len(cut), device=cut.device) * width + group.lengths - 1
        trunk = parts_of(actor.policy).trunk if actor.critic is None else actor.critic
        with torch.no_grad():
            values[cut] = actor.values(chosen_hidden(trunk, group.ids, last))
    return values


def score_rollouts(
    actor: PolicyWithValue,
    reference: Reference,
    scorer: Scorer,
    tokenizer: Any,
    prompts: list[str],
    sampled: Any,
    minibatches: Sequence[Tensor],
    config: PPOConfig,
    processes: Processes,
    gold: Any = None,
) -> Rollouts:
    """Everything about sampled answers that is known before the update."""
    sequences = Sequences.of(sampled)
    groups = scoring_groups(sequences, minibatches, config, processes)
    logprobs, values, gap = sampled.logprobs, sampled.values, 0.0
    if config.recomputes or values is None:
        again, values = map(processes.sum, policy_scores(actor, sequences, groups, config))
        if config.recomputes:
            gap = float((again - logprobs).abs().max())
            logprobs = again
    ref_logprobs = processes.sum(reference_logprobs(reference, sequences, groups, config))

    # the reward sees this process's share of the answers
    mine = processes.share(torch.arange(len(sequences), device=sequences.ids.device))
    ended = sampled.ended[mine]
    completions = completion_texts(
        tokenizer, sampled.completion_ids[mine], sampled.completion_mask[mine]
    )
    answers = Answers(processes.share(prompts), completions, sequences.rows(mine), ended)
    scores, disagreement = scorer(answers)
    known = None
    if gold is not None:
        known = checked_scores(gold, answers.prompts, completions, "gold")
    last_values = None
    if config.bootstrap_truncated:
        last_values = processes.gather(values_after(actor, answers.sequences, ended))
    return Rollouts(
        prompts=prompts,
        completions=processes.gather_list(completions),
        sequences=sequences,
        mask=sampled.completion_mask,
        ended=sampled.ended,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        scores=processes.gather(scores),
        entropy=float(sampled.entropy[sampled.completion_mask].mean()),
        logprob_gap=gap,
        disagreement=None if disagreement is None else float(processes.gather(disagreement).mean()),
        gold=None if known is None else processes.gather_list(known),
        last_values=last_values,
    )
