"""LoRA and QLoRA with one start: the same adapters, bases that differ by rounding alone."""

import pytest
import torch

from course_utils import Lab
from course_utils.experiments import four_bit
from course_utils.models import evaluating

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def lab():
    return Lab.open("tiny")


def adapters(model):
    """A and B in the order of the layers."""
    return [p.detach() for p in model.parameters() if p.requires_grad]


def logits(model):
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad(), evaluating(model):
        return model(input_ids=ids).logits


def test_one_seed_gives_both_the_same_adapters(lab):
    plain, _ = four_bit.lora_model(lab, 4)
    rounded, _ = four_bit.qlora_model(lab, 4)
    four_bit.same_start(plain, 3)
    four_bit.same_start(rounded, 3)
    pairs = list(zip(adapters(plain), adapters(rounded), strict=True))
    assert len(pairs) == 2 * 28
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(a.abs().max() > 0 for a, _ in pairs)
    first = [a.clone() for a, _ in pairs]
    four_bit.same_start(plain, 4)
    assert not all(torch.equal(a, b) for a, b in zip(first, adapters(plain), strict=True))


def test_without_bitsandbytes_the_courses_own_layers_compute_the_same(lab, monkeypatch):
    library, _ = four_bit.qlora_model(lab, 4)
    monkeypatch.setattr(four_bit, "has_bitsandbytes", lambda: False)
    own, _ = four_bit.qlora_model(lab, 4)
    assert [a.shape for a in adapters(own)] == [a.shape for a in adapters(library)]
    torch.testing.assert_close(logits(own), logits(library), rtol=0, atol=0.2)
    plain, _ = four_bit.lora_model(lab, 4)
    rounding = (logits(plain) - logits(own)).abs().max()
    assert rounding > 5 * (logits(library) - logits(own)).abs().max()


def test_a_tier_that_is_quantized_is_loaded_in_full_precision_for_lora(lab):
    choice = four_bit.unquantized(lab)
    assert choice.tier.policy == lab.tier.qlora_policy
    assert not choice.tier.quantized
