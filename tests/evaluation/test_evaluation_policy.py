"""Evaluation of real (toy) models: KL against exact enumeration, losses against the model's own."""

import itertools
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from course_utils.errors import CourseError
from course_utils.evaluation import (
    evaluate_best_of_n,
    evaluate_policy,
    forgetting,
    kl_to_reference,
    perplexity,
)
from course_utils.evaluation.documents import document_tokens
from course_utils.generation import encode_prompts, generate_texts


@dataclass(frozen=True)
class Score:
    total: float
    parts: dict


def word_gold(prompt, completion):
    long, asked = 0.1 * len(completion.split()), float(len(prompt.split()))
    return Score(long + asked, {"length": long, "prompt": asked})


def other_model(tokenizer, seed=7, scale=8.0):
    """Another random model; the scaled output layer takes it far from the uniform distribution."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


PROMPTS = ["hello", "explain the moon landing to a 6 year old", "should i add chorizo ?"]


# ---- KL ----------------------------------------------------------------------------------------


def test_kl_of_a_policy_to_itself_is_zero(tiny_model, tiny_tokenizer):
    result = kl_to_reference(tiny_model, tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=8)
    for estimate in (result.k1, result.k3, result.exact):
        assert estimate.mean == pytest.approx(0.0, abs=1e-6)


def enumerated_kl(policy, reference, tokenizer, prompt, temperature):
    """Σ_y π(y) log π(y)/π_ref(y) over every answer of at most two tokens."""
    start = encode_prompts(tokenizer, [prompt]).input_ids[0].tolist()
    words = range(len(tokenizer))

    def steps(model):
        ids = torch.tensor([[*start, w] for w in words])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, -2:].double() / temperature
        return torch.log_softmax(logits, dim=-1)  # (V, 2, V): first and second token

    p, q = steps(policy), steps(reference)
    total = 0.0
    for w in words:
        first_p, first_q = p[w, 0, w], q[w, 0, w]
        if w == tokenizer.eos_token_id:
            total += float(first_p.exp() * (first_p - first_q))
            continue
        joint_p, joint_q = first_p + p[w, 1], first_q + q[w, 1]
        total += float((joint_p.exp() * (joint_p - joint_q)).sum())
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_agrees_with_the_sum_over_all_answers(tiny_model, tiny_tokenizer, temperature):
    policy = other_model(tiny_tokenizer)
    truth = enumerated_kl(policy, tiny_model, tiny_tokenizer, PROMPTS[0], temperature)
    assert truth > 0.1
    found = kl_to_reference(
        policy,
        tiny_model,
        tiny_tokenizer,
        [PROMPTS[0]] * 2000,
        temperature=temperature,
        max_new_tokens=2,
        batch_size=1000,
    )
    for estimate in (found.k1, found.k3, found.exact):
        error = (estimate.high - estimate.low) / 4
        assert estimate.mean == pytest.approx(truth, abs=4 * error)
    widths = [e.high - e.low for e in (found.exact, found.k1, found.k3)]
    assert 3 * widths[0] < min(widths[1:])  # the sampled token is averaged over: much less noise
    assert found.mean == found.exact.mean


def test_kl_needs_a_temperature(tiny_model, tiny_tokenizer):
    with pytest.raises(CourseError, match="temperature must be > 0"):
        kl_to_reference(tiny_model, tiny_model, tiny_tokenizer, PROMPTS, temperature=0)


# ---- evaluate_policy ---------------------------------------------------------------------------


def test_evaluation_of_known_scores(tiny_model, tiny_tokenizer):
    result = evaluate_policy(
        tiny_model,
        tiny_tokenizer,
        PROMPTS,
        gold=word_gold,
        reward=lambda prompts, completions: [float(len(c)) for c in completions],
        reference=other_model(tiny_tokenizer),
        samples_per_prompt=2,
        max_new_tokens=6,
    )
    assert len(result.completions) == 6
    assert [c.prompt for c in result.completions] == [p for p in PROMPTS for _ in range(2)]
    golds = [word_gold(c.prompt, c.text).total for c in result.completions]
    assert result.gold.mean == pytest.approx(np.mean(golds))
    assert (result.mean, result.interval) == (result.gold.mean, result.gold.interval)
    total = sum(part.mean for part in result.parts.values())
    assert total == pytest.approx(result.gold.mean)
    assert result.reward.mean == pytest.approx(np.mean([len(c.text) for c in result.completions]))
    assert result.kl.mean == pytest.approx(np.mean([c.kl for c in result.completions]))
    assert result.kl.mean > 0
    assert result.length.mean == pytest.approx(np.mean([c.tokens for c in result.completions]))
    assert all(1 <= c.tokens <= 6 for c in result.completions)
    assert any(c.truncated for c in result.completions)
    assert all(c.tokens == 6 for c in result.completions if c.truncated)
    assert result.eos_rate + result.truncated_rate == 1
    assert result.scores("gold").shape == (3, 2)
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["gold"]["mean"] == result.gold.mean
    assert plain["completions"][0]["text"] == result.completions[0].text
    assert plain["kl"]["exact"]["n"] == 3


def test_evaluation_without_gold_reward_or_reference(tiny_model, tiny_tokenizer):
    result = evaluate_policy(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=4)
    assert (result.gold, result.parts, result.reward, result.kl) == (None, None, None, None)
    assert json.loads(json.dumps(result.to_json()))["gold"] is None
    with pytest.raises(CourseError, match="no score"):
        _ = result.mean
    with pytest.raises(CourseError, match="without gold"):
        result.scores()


def test_same_seed_same_answers_whatever_the_batches(tiny_model, tiny_tokenizer):
    def run(**settings):
        found = evaluate_policy(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=6, **settings)
        return [c.text for c in found.completions]

    assert run() == run(batch_size=1)
    assert run() == generate_texts(tiny_model, tiny_tokenizer, PROMPTS, max_new_tokens=6)
    assert run() != run(seed=1)
    several = run(samples_per_prompt=4)
    assert len(set(several[:4])) > 1
    assert len(set(run(temperature=0, samples_per_prompt=3)[:3])) == 1


def test_prompts_may_be_objects_with_text_or_messages(tiny_model, tiny_tokenizer):
    @dataclass(frozen=True)
    class Prompt:
        text: str

    chat = [{"role": "user", "content": PROMPTS[0]}]
    found = evaluate_policy(
        tiny_model, tiny_tokenizer, [Prompt(PROMPTS[0]), chat], gold=word_gold, max_new_tokens=3
    )
    assert [c.prompt for c in found.completions] == [PROMPTS[0]] * 2


def test_evaluation_keeps_the_models_mode_and_needs_prompts(tiny_model, tiny_tokenizer):
    tiny_model.train()
    evaluate_policy(tiny_model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=2)
    assert tiny_model.training
    with pytest.raises(CourseError, match="0 prompts"):
        evaluate_policy(tiny_model, tiny_tokenizer, [])
    with pytest.raises(CourseError, match="returned 1 scores for 3 answers"):
        evaluate_policy(
            tiny_model, tiny_tokenizer, PROMPTS, reward=lambda p, c: [0.0], max_new_tokens=2
        )


def test_best_of_n_of_a_policy(tiny_model, tiny_tokenizer):
    found = evaluate_best_of_n(
        tiny_model,
        tiny_tokenizer,
        PROMPTS,
        reward=lambda prompts, completions: [float(len(c.split())) for c in completions],
        gold=word_gold,
        samples=4,
        max_new_tokens=6,
    )
    one = evaluate_policy(
        tiny_model,
        tiny_tokenizer,
        PROMPTS,
        gold=word_gold,
        samples_per_prompt=4,
        max_new_tokens=6,
    )
    assert found.gold[0].mean == pytest.approx(one.gold.mean)  # best of 1 is the policy itself
    assert all(x.mean <= y.mean for x, y in itertools.pairwise(found.reward))
    texts = [c.text for c in one.completions]
    assert found.chosen[0] in texts[:4]


# ---- documents ---------------------------------------------------------------------------------

DOCUMENTS = [
    "the moon is big .",
    "hello",
    "rice and saffron in my paella is traditional . not bad !",
]


def test_loss_on_documents_is_the_models_own(tiny_model, tiny_tokenizer):
    found = perplexity(tiny_model, tiny_tokenizer, DOCUMENTS)
    for i, text in enumerate(DOCUMENTS):
        ids = torch.tensor([document_tokens(tiny_tokenizer, text)])
        with torch.no_grad():
            loss = tiny_model(input_ids=ids, labels=ids).loss.item()
        assert found.sums[i] / found.counts[i] == pytest.approx(loss, rel=1e-4)
        assert found.counts[i] == ids.shape[1] - 1
    assert found.loss.mean == pytest.approx(found.sums.sum() / found.counts.sum())
    assert found.perplexity == pytest.approx(np.exp(found.loss.mean))
    assert found.loss.low <= found.loss.mean <= found.loss.high
    one_by_one = perplexity(tiny_model, tiny_tokenizer, DOCUMENTS, batch_size=1)
    assert one_by_one.sums == pytest.approx(found.sums, rel=1e-4)
    json.dumps(found.to_json(), allow_nan=False)


def test_documents_are_framed_once_and_cut(tiny_tokenizer):
    bos, eos = tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id
    plain = document_tokens(tiny_tokenizer, "hello moon")
    assert (plain[0], plain[-1], len(plain)) == (bos, eos, 4)
    chat = document_tokens(tiny_tokenizer, "<|user|> hello <|assistant|> moon <|end|>")
    assert bos not in chat
    assert chat.count(eos) == 1
    assert document_tokens(tiny_tokenizer, "hello moon", max_length=2) == plain[:2]


def test_forgetting_is_the_paired_rise_in_loss(tiny_model, tiny_tokenizer):
    before = perplexity(tiny_model, tiny_tokenizer, DOCUMENTS)
    after = perplexity(other_model(tiny_tokenizer), tiny_tokenizer, DOCUMENTS)
    rise = forgetting(before, after)
    assert rise.mean == pytest.approx(after.loss.mean - before.loss.mean)
    assert forgetting(before, before).interval == (0.0, 0.0)
    with pytest.raises(ValueError, match="same documents"):
        forgetting(before, perplexity(tiny_model, tiny_tokenizer, DOCUMENTS[:2]))


def test_no_document_to_score(tiny_model, tiny_tokenizer):
    with pytest.raises(CourseError, match="no document has two tokens"):
        perplexity(tiny_model, tiny_tokenizer, [])
