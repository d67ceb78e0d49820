"""Costs of a training step: against counted bytes, and models that are left as they were."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.adapters import apply_lora
from course_utils.errors import CourseError
from course_utils.experiments.step_cost import step_costs


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_attention_heads=2, **sizes))


IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(1))


def test_memory_is_what_the_trained_numbers_say() -> None:
    """Full against LoRA on one batch: 12 bytes a trained number, the activations about alike."""
    models = {"full": tiny(), "lora": apply_lora(tiny(), 2)}
    trained = {
        k: sum(p.numel() for p in m.parameters() if p.requires_grad) for k, m in models.items()
    }
    found = step_costs(models, (IDS, IDS), rounds=1)
    count = sum(p.numel() for p in models["full"].parameters())
    assert found["full"].held_mb == pytest.approx(16 * count / 1e6)
    assert found["lora"].held_mb == pytest.approx((4 * count + 16 * trained["lora"]) / 1e6)
    # Adam's moments alone already tell them apart
    assert found["full"].peak_mb - found["lora"].peak_mb > 8 * (count - trained["lora"]) / 1e6 * 0.9
    assert found["full"].relative == 1
    assert all(cost.cpu_ms > 0 and cost.peak_mb > 0 for cost in found.values())


def test_the_models_are_left_alone() -> None:
    model = apply_lora(tiny(), 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step_costs({"lora": model}, (IDS, IDS), rounds=1)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None


def test_what_cannot_be_measured_says_so() -> None:
    with pytest.raises(CourseError, match="at least 1 round"):
        step_costs({"full": tiny()}, (IDS, IDS), rounds=0)
    with pytest.raises(CourseError, match="frozen has no parameter that trains"):
        step_costs({"frozen": tiny().requires_grad_(False)}, (IDS, IDS))
