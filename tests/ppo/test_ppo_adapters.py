"""LoRA policies, references that cost nothing, and separate critics."""

import dataclasses
from typing import Any

import pytest
import torch

from course_utils import models
from course_utils.models import Reference, count_parameters, token_logprobs
from course_utils.objectives import RewardNormalisation
from course_utils.training.ppo import PPOConfig, PPOTrainer
from course_utils.training.reward_model import RewardModel, sequence_classifier
from course_utils.training.run import RunLog


def with_lora(model: Any, dropout: float = 0.0) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


@pytest.fixture
def lora(policy: Any) -> Any:
    return with_lora(policy, dropout=0.3).eval()


def frozen_part(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def test_lora_uses_the_base_as_reference_and_holds_no_second_model(make_trainer, lora) -> None:
    """Points 7, 29: a fresh adapter, lora_dropout off: KL 0 and ratio 1 first; base frozen."""
    lora.train()
    trainer = make_trainer(policy=lora, learning_rate=1e-2, steps=3)
    assert trainer.reference.kind == "adapter off"
    before = frozen_part(lora)
    rows = [step.stats for step in trainer]
    assert abs(rows[0]["kl"]) < 1e-4
    assert rows[0]["ratio_first_max"] == pytest.approx(1, abs=1e-5)
    assert rows[-1]["kl_k3"] > 1e-3
    after = frozen_part(lora)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.updater.parameters
    assert all(
        "lora" in name or "value_head" in name
        for name, p in trainer.actor.named_parameters()
        if p.requires_grad
    )


def test_the_adapter_off_reference_is_the_base_model(lora, policy, tiny_tokenizer) -> None:
    """Point 29: also after training, and the adapter is on again afterwards."""
    ids, mask = torch.arange(20, 40).view(2, 10), torch.ones(2, 10, dtype=torch.long)
    base = token_logprobs(lora, ids, mask, 3).detach()
    reference = Reference(lora)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changed = token_logprobs(lora, ids, mask, 3).detach()
    with reference.model() as model:
        assert torch.equal(token_logprobs(model, ids, mask, 3), base)
    assert not torch.allclose(changed, base)
    assert torch.equal(token_logprobs(lora, ids, mask, 3).detach(), changed)


def test_an_adapter_that_already_changes_the_model_is_remembered_as_it_was(lora) -> None:
    """Point 29: adapter off would be the wrong reference here."""
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids, mask = torch.arange(20, 40).view(2, 10), torch.ones(2, 10, dtype=torch.long)
    start = token_logprobs(lora, ids, mask, 3).detach()
    reference = Reference(lora)
    assert reference.kind == "adapter as it was"
    with torch.no_grad():
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    moved = token_logprobs(lora, ids, mask, 3).detach()
    with reference.model() as model:
        assert torch.equal(token_logprobs(model, ids, mask, 3), start)
    assert torch.equal(token_logprobs(lora, ids, mask, 3).detach(), moved)
    with pytest.raises(RuntimeError, match="stop"), reference.model():
        raise RuntimeError("stop")
    assert torch.equal(token_logprobs(lora, ids, mask, 3).detach(), moved)


def test_continuing_an_adapter_starts_at_kl_0(make_trainer, lora) -> None:
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    rows = make_trainer(policy=lora, learning_rate=1e-2).train(progress=False)
    assert abs(rows[0]["kl"]) < 1e-4
    assert rows[1]["kl_k3"] > 1e-3


def test_a_lora_run_resumes_and_its_checkpoint_holds_the_adapter_only(
    policy, tiny_tokenizer, config, tmp_path
) -> None:
    base = models.copy_model(policy)
    settings = dataclasses.replace(config, steps=4, save_every=2)

    def start(name: str, resume: bool = False) -> PPOTrainer:
        torch.manual_seed(0)
        log = RunLog.create(tmp_path / name, dataclasses.asdict(settings), 0, resume)
        prompts, reward = ["hello", "why", "is it big ?"], (lambda p, c: [float(len(x)) for x in c])
        adapted = with_lora(models.copy_model(base))
        return PPOTrainer(adapted, reward, tiny_tokenizer, prompts, settings, log=log)

    straight = start("straight")
    straight.train(progress=False)
    first = start("parts")
    for _ in range(3):
        first.step()
    second = start("parts", resume=True)
    assert second.resume() == 2
    second.train(progress=False)
    for a, b in zip(straight.actor.parameters(), second.actor.parameters(), strict=True):
        assert torch.equal(a, b)
    _, directory = second.log.latest_checkpoint()
    size = (directory / "actor.safetensors").stat().st_size
    assert size < 1.3 * 4 * count_parameters(second.actor)[1] + 8000


@pytest.mark.parametrize("settings", [{}, {"bootstrap_truncated": True, "precision": "bf16"}])
def test_a_separate_critic_has_its_own_trunk(make_trainer, policy, settings) -> None:
    """Point 21: the value loss no longer reaches the policy; values come from a forward pass."""
    trainer = make_trainer(critic="policy", steps=2, **settings)
    shared = {p.data_ptr() for p in policy.parameters()}
    assert not shared & {p.data_ptr() for p in trainer.actor.critic.parameters()}
    assert not bool(trainer.step().rollouts.values.any())
    assert bool(trainer.step().rollouts.values.any())
    rollouts = trainer.step().rollouts
    trainer.updater.optimizer.zero_grad()
    rollouts.advantages = torch.zeros_like(rollouts.advantages)
    trainer.updater._accumulate(rollouts, torch.arange(len(rollouts)))
    assert not any(bool(p.grad.any()) for p in policy.parameters() if p.grad is not None)
    assert any(bool(p.grad.any()) for p in trainer.actor.critic.parameters())


@pytest.fixture
def reward_model(policy: Any, tiny_tokenizer: Any) -> RewardModel:
    """Random, with a normalisation that matters."""
    classifier = sequence_classifier(policy)
    with torch.no_grad():
        classifier.score.weight.mul_(30)
    model = RewardModel(classifier, tiny_tokenizer)
    model.normalisation = RewardNormalisation(0.3, 2.0)
    return model


def test_a_reward_model_scores_tokens_as_it_scores_their_text(make_trainer, reward_model) -> None:
    """Points 15, 19: no second tokenisation, normalised, cut answers scored as if they ended."""
    rollouts = make_trainer(reward=reward_model).step().rollouts
    assert bool(rollouts.ended.any())
    assert not bool(rollouts.ended.all())
    by_text = reward_model(rollouts.prompts, rollouts.completions)
    # ends other than EOS (the tiny policy has several) and special tokens within are lost in text
    eos = reward_model.tokenizer.eos_token_id
    compared = 0
    for i, text_score in enumerate(by_text):
        s = rollouts.sequences
        ids = s.ids[i, int(s.prompt_lengths[i]) : int(s.lengths[i])].tolist()
        inside = ids[:-1] if rollouts.ended[i] else ids
        if all(token > 6 for token in inside) and (ids[-1] == eos or not rollouts.ended[i]):
            compared += 1
            assert float(rollouts.scores[i]) == pytest.approx(text_score, abs=1e-4)
    assert compared >= 3
    assert float(rollouts.scores.std()) > 0.01


def test_a_critic_may_start_from_the_reward_model(make_trainer, reward_model) -> None:
    """Points 19, 21: V starts as the reward model's normalised score of the prefix."""
    reward = reward_model
    trainer = make_trainer(reward=reward, critic="reward")
    r = trainer.step().rollouts
    s = r.sequences
    for i in range(3):
        prefix = s.ids[i : i + 1, : int(s.prompt_lengths[i])]
        wanted = reward.score_tokens(prefix, torch.ones_like(prefix))
        torch.testing.assert_close(r.values[i, 0], wanted[0], atol=1e-5, rtol=1e-5)
    assert float(r.values[r.mask].std()) > 0
    ended = int(r.ended.nonzero()[0])
    whole = s.ids[ended : ended + 1, : int(s.lengths[ended])]
    score = reward.score_tokens(whole, torch.ones_like(whole))
    torch.testing.assert_close(r.scores[ended], score[0], atol=1e-5, rtol=1e-5)


def test_models_held(make_trainer, policy) -> None:
    """Full fine-tuning holds policy and reference; LoRA with a fresh adapter the policy only."""
    full = make_trainer()
    assert full.reference._model is not policy
    assert PPOConfig().critic == "shared"
    lora = with_lora(policy)
    assert make_trainer(policy=lora).reference._model is lora
