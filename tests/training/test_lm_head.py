"""The head we use on CPUs gives what TRL's gives, and its gradients."""

import copy

import pytest
import torch

import course_utils.training.lm_head as lm_head
from course_utils.training.lm_head import use_compact_head
from course_utils.training.trl_common import as_found

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "label_mask", "loss")


@pytest.fixture
def batch(tiny_tokenizer):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(4, len(tiny_tokenizer), (3, 9), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    labels[2] = -100
    labels[2, -1] = ids[2, -1]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def run(model, batch, ours):
    from trl.trainer.utils import add_fused_lm_head

    inner = lm_head.inner_model(model)
    add_fused_lm_head(inner, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    if ours:
        assert use_compact_head(model)
    out = model(**batch, fused_lm_head=True)
    (-out.log_probs.sum() + 0.3 * out.log_probs[0].sin().sum()).backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def lora(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("wrap", [copy.deepcopy, lora])
def test_same_quantities_and_gradients_as_trl(tiny_model, batch, wrap):
    model = wrap(tiny_model)
    theirs, their_grads = run(copy.deepcopy(model), batch, ours=False)
    ours, our_grads = run(model, batch, ours=True)
    for name in FIELDS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-5, atol=1e-5)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-4, atol=1e-5)


def test_ours_is_in_use_and_large_batches_are_left_to_trl(tiny_model, batch, monkeypatch):
    calls = []
    real = lm_head._compact
    monkeypatch.setattr(lm_head, "_compact", lambda *a, **k: calls.append(1) or real(*a, **k))
    small, _ = run(copy.deepcopy(tiny_model), batch, ours=True)
    assert calls == [1]
    monkeypatch.setattr(lm_head, "MAX_LOGITS", 100)
    large, _ = run(copy.deepcopy(tiny_model), batch, ours=True)
    assert calls == [1]
    torch.testing.assert_close(small.log_probs, large.log_probs, rtol=1e-5, atol=1e-5)


def test_the_ordinary_forward_and_generate_still_work_and_come_back(tiny_model, batch):
    before = tiny_model(**batch)
    with as_found(tiny_model):
        run(tiny_model, batch, ours=True)
        inside = tiny_model(**batch)
        torch.testing.assert_close(inside.logits, before.logits)
        torch.testing.assert_close(inside.loss, before.loss)
        tiny_model.generate(batch["input_ids"], max_new_tokens=2, do_sample=False)
        assert "forward" in tiny_model.__dict__
        tiny_model.train()
    assert "forward" not in tiny_model.__dict__
    assert not tiny_model.training
