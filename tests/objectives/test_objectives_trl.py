"""Our functions against TRL's own trainers on a tiny random model: same batch, same loss."""

import warnings
from typing import Any

import pytest
import torch

from course_utils import objectives as O

pytest.importorskip("trl")

PAIRS = [
    ("hello", "the moon is big", "no"),
    ("explain the moon landing", "people went with rocket", "it is dark and small"),
    ("should i add chorizo ?", "no , saffron", "yes sure because good"),
    ("why", "because", "yes no yes no yes"),
]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def settings(tmp_path: Any, batch: int = 4) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": batch,
        "disable_tqdm": True,
        "save_strategy": "no",
    }


def loss_and_gradient(model: Any, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])


def assert_same_loss(model: Any, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    (loss, gradient), (their_loss, their_gradient) = (
        loss_and_gradient(model, x) for x in (ours, theirs)
    )
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-3, atol=1e-6)
    assert gradient.norm() > 1e-3


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_logprobs_and_entropy_are_trls():
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits, ids = torch.randn(4, 6, 50) * 3, torch.randint(0, 50, (4, 6))
    ours = O.token_logprobs(logits, ids)
    torch.testing.assert_close(ours, selective_log_softmax(logits, ids), rtol=1e-5, atol=1e-6)
    ours = O.token_logprobs(logits, ids, temperature=0.7)
    theirs = selective_log_softmax(logits, ids, temperature=0.7)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(O.entropy_from_logits(logits), entropy_from_logits(logits))


def test_the_sft_loss_is_sft_trainers(tiny_model, tiny_tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": user(p), "completion": assistant(c)} for p, c, _ in PAIRS]
    trainer = SFTTrainer(
        model=tiny_model,
        args=SFTConfig(**settings(tmp_path), max_length=64, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(tiny_model, dict(batch))
    labels = batch.pop("labels")
    logits = tiny_model(**batch).logits
    mask = labels != O.IGNORE_INDEX
    logprobs = O.next_token_logprobs(logits, batch["input_ids"])
    assert_same_loss(tiny_model, O.sft_loss(logprobs, mask[:, 1:]), theirs)


def test_bradley_terry_is_reward_trainers(tiny_model, tiny_tokenizer, tmp_path):
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tiny_model.config.num_labels = 1
    model = LlamaForSequenceClassification(tiny_model.config).eval()
    rows = [
        {"prompt": user(p), "chosen": assistant(c), "rejected": assistant(r), "margin": m}
        for (p, c, r), m in zip(PAIRS, (0.0, 0.5, 1.0, 2.0), strict=True)
    ]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**settings(tmp_path), max_length=64),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    batch = dict(next(iter(trainer.get_train_dataloader())))
    margin = batch["margin"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for with_margin in (True, False):
        given = dict(batch) if with_margin else dict(inputs)
        theirs = trainer.compute_loss(model, given)
        chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
        ours = O.bradley_terry_loss(chosen, rejected, margin if with_margin else None)
        assert_same_loss(model, ours, theirs)
    logged = trainer._metrics["eval"]["accuracy"][-1]
    assert O.reward_accuracy(chosen, rejected).item() == pytest.approx(logged)


def test_dpo_and_its_variants_are_dpo_trainers(tiny_model, tiny_tokenizer, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    reference = type(tiny_model)(tiny_model.config).eval()
    rows = [
        {"prompt": user(p), "chosen": assistant(c), "rejected": assistant(r)} for p, c, r in PAIRS
    ]
    trainer = DPOTrainer(
        model=tiny_model,
        ref_model=reference,
        args=DPOConfig(**settings(tmp_path), max_length=64, beta=0.3),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    mask = batch["completion_mask"][:, 1:]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def logprobs(model: Any, reduction: str) -> tuple[torch.Tensor, ...]:
        tokens = O.next_token_logprobs(model(**inputs).logits, batch["input_ids"])
        return O.sequence_logprob(tokens, mask, reduction).chunk(2)

    cases = [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.2), ("ipo", 0.0), ("hinge", 0.0)]
    for variant, smoothing in cases:
        trainer.loss_types, trainer.loss_weights = [variant], [1.0]
        trainer.label_smoothing = smoothing
        if smoothing and variant == "sigmoid":
            # TRL's "sigmoid" ignores label_smoothing; cDPO is this mixture of its losses
            trainer.loss_types = ["sigmoid", "robust"]
            trainer.loss_weights = [2 - 2 * smoothing, -(1 - 2 * smoothing)]
        theirs = trainer.compute_loss(tiny_model, dict(batch))
        reduction = "mean" if variant == "ipo" else "sum"
        with torch.no_grad():
            ref = logprobs(reference, reduction)
        ours = O.dpo_loss(*logprobs(tiny_model, reduction), *ref, 0.3, variant, smoothing)
        assert_same_loss(tiny_model, ours, theirs)
    policy, ref = logprobs(tiny_model, "sum"), logprobs(reference, "sum")
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    margins = O.reward_margins(*policy, *ref, 0.3)
    assert margins.mean().item() == pytest.approx(logged["rewards/margins"], rel=1e-4)
    assert (margins > 0).float().mean().item() == logged["rewards/accuracies"]
    for name, p, r in zip(("chosen", "rejected"), policy, ref, strict=True):
        implied = O.implicit_rewards(p, r, 0.3).mean().item()
        assert implied == pytest.approx(logged[f"rewards/{name}"], rel=1e-4)


def rollout(
    name: str, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Any, **options: Any
) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """A GRPO/RLOO trainer of TRL's, one generation of its own, the raw rewards it saw (N, G)."""
    import trl
    from datasets import Dataset

    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    seen: list[float] = []

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        scores = [len(c[0]["content"]) / 7 + len(seen) % 3 for c in completions]
        seen.extend(scores)
        return scores

    trainer = getattr(trl, f"{name}Trainer")(
        model=str(tmp_path / "model"),
        reward_funcs=reward,
        args=getattr(trl, f"{name}Config")(
            **settings(tmp_path, batch=8),
            num_generations=4,
            max_completion_length=12,
            disable_dropout=True,
            model_init_kwargs={"dtype": "float32"},
            beta=0.1,
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": user(p)} for p, _, _ in PAIRS]),
        processing_class=tiny_tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    out = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    return trainer, out, torch.tensor(seen).view(-1, 4)


def completion_logprobs(model: Any, out: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
    attention = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
    logits = model(ids, attention_mask=attention).logits
    return O.next_token_logprobs(logits, ids)[:, -out["completion_ids"].shape[1] :]


def drift(model: Any, scale: float = 0.05) -> None:
    """Move the policy away from the one that sampled, so that ratios leave 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_grpo_advantages_masks_and_losses_are_grpo_trainers(
    tiny_model, tiny_tokenizer, tmp_path, scale_rewards
):
    trainer, out, rewards = rollout(
        "GRPO", tiny_model, tiny_tokenizer, tmp_path, scale_rewards=scale_rewards
    )
    model, mask = trainer.model, out["completion_mask"]
    ours = O.group_advantages(rewards, scale=scale_rewards == "group").flatten()
    torch.testing.assert_close(ours, out["advantages"])
    ends = O.completion_mask_from_eos(out["completion_ids"], tiny_tokenizer.eos_token_id)
    assert torch.equal(ends, mask.bool())
    old = completion_logprobs(model, out).detach()
    theirs = O.zero_masked(out["ref_per_token_logps"], mask)  # the reference is the policy: KL = 0
    torch.testing.assert_close(O.zero_masked(old, mask), theirs, rtol=1e-4, atol=1e-5)
    drift(model)
    out["old_per_token_logps"] = old + 0.1 * torch.randn_like(old)
    out["ref_per_token_logps"] = old
    cases = [("grpo", False), ("grpo", True), ("bnpo", True), ("dr_grpo", False)]
    for aggregation, unbiased_kl in cases:
        trainer.loss_type, trainer.args.use_bias_correction_kl = aggregation, unbiased_kl
        theirs = trainer.compute_loss(model, dict(out))
        loss, stats = O.grpo_loss(
            completion_logprobs(model, out),
            out["old_per_token_logps"],
            ours,
            mask,
            old,
            beta=0.1,
            aggregation=aggregation,
            max_completion_length=12,
            unbiased_kl=unbiased_kl,
        )
        assert_same_loss(model, loss, theirs)
    assert 0 < stats["clip_fraction"] < 1
    logged = trainer._metrics["eval"]["kl"][-1]
    assert stats["kl_k3"].item() == pytest.approx(logged, rel=1e-3)  # TRL logs it corrected, if so


def test_rloo_advantages_and_the_clipped_loss_are_rloo_trainers(
    tiny_model, tiny_tokenizer, tmp_path
):
    trainer, out, rewards = rollout("RLOO", tiny_model, tiny_tokenizer, tmp_path)
    model, mask = trainer.model, out["completion_mask"]
    torch.testing.assert_close(
        O.rloo_advantages(rewards).flatten(), out["advantages"], rtol=1e-4, atol=1e-4
    )
    drift(model, 0.03)
    theirs = trainer.compute_loss(model, dict(out))
    # RLOO's action is the whole answer: PPO's loss on one "token" per row
    sequence = O.sequence_logprob(completion_logprobs(model, out), mask)
    loss, stats = O.ppo_policy_loss(
        sequence.unsqueeze(1),
        out["old_logps"].unsqueeze(1),
        out["advantages"].unsqueeze(1),
        torch.ones(8, 1),
    )
    assert_same_loss(model, loss, theirs)
    logged = trainer._metrics["eval"]["clip_ratio/region_mean"][-1]
    assert stats["clip_fraction"].item() == pytest.approx(logged)
