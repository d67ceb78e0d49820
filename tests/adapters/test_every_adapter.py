"""What holds for all five kinds on all families: identity, padding, caches, restoring, saving."""

import copy
from typing import Any

import pytest
import torch

from course_utils import adapters
from course_utils.errors import CourseError
from course_utils.generation import sample
from course_utils.models import parts_of, token_logprobs

APPLY = {
    "lora": (lambda m: adapters.apply_lora(m, rank=3), adapters.remove_lora),
    "houlsby": (lambda m: adapters.apply_houlsby(m, 5), adapters.remove_houlsby),
    "houlsby-norms": (
        lambda m: adapters.apply_houlsby(m, 5, train_norms=True),
        adapters.remove_houlsby,
    ),
    "prompt": (lambda m: adapters.apply_prompt_tuning(m, 4), adapters.remove_prompt_tuning),
    "prefix": (lambda m: adapters.apply_prefix_tuning(m, 4), adapters.remove_prefix_tuning),
    "prefix-mlp": (
        lambda m: adapters.apply_prefix_tuning(m, 4, hidden=6),
        adapters.remove_prefix_tuning,
    ),
    "bitfit": (lambda m: adapters.apply_bitfit(m, add_missing=True), adapters.remove_bitfit),
}
IDENTITY = ("lora", "houlsby", "houlsby-norms", "bitfit")  # prompts and prefixes always change it


@pytest.fixture(params=list(APPLY))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tuned(model: Any, kind: str, tools: Any) -> Any:
    """A model with an adapter whose every weight has moved."""
    return tools.randomize(APPLY[kind][0](model))


def test_the_model_is_as_it_was_at_the_start(model: Any, kind: str, text: Any) -> None:
    before = model(text).logits
    after = APPLY[kind][0](model)(text).logits
    assert after.shape == before.shape
    if kind in IDENTITY:
        assert torch.equal(after, before)


def test_every_trained_weight_matters_and_nothing_else_trains(
    tuned: Any, kind: str, text: Any, tools: Any
) -> None:
    """The adapted model differs from the base, and each trained parameter gets a gradient."""
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert trained == adapters.applied(tuned).names
    grads = tools.gradients(tuned, tuned(text, labels=text).loss)
    assert set(grads) == set(trained)
    still = {name for name, grad in grads.items() if not grad.abs().max() > 0}
    # softmax does not see what adds the same to all keys; GELU may leave nothing at zero
    assert all(name.endswith("k_proj.bias") for name in still), still
    with torch.no_grad():
        changed = tuned(text).logits
    plain = APPLY[kind][1](tuned)
    assert (changed - plain(text).logits).abs().max() > 0.05


def test_left_padding_changes_nothing(tuned: Any, text: Any, tools: Any) -> None:
    ids, mask = tools.padded(text, 4)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = tuned(text).logits
        moved = tuned(ids, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(moved, plain, rtol=1e-4, atol=2e-5)


def test_rows_of_a_ragged_batch_are_as_if_alone(tuned: Any, text: Any) -> None:
    """Rows of 7, 5 and 2 tokens, padded on the left, together and one by one."""
    mask = torch.tensor([[1] * 7, [0] * 2 + [1] * 5, [0] * 5 + [1] * 2])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        together = tuned(text, attention_mask=mask, position_ids=positions).logits
        for row, length in enumerate((7, 5, 2)):
            alone = tuned(text[row : row + 1, -length:]).logits[0]
            torch.testing.assert_close(together[row, -length:], alone, rtol=1e-4, atol=2e-5)


def test_gradients_with_and_without_labels_masked(tuned: Any, text: Any) -> None:
    """`labels` with -100 give the loss computed by hand from the logits."""
    labels = text.clone()
    labels[:, :3] = -100
    out = tuned(text, labels=labels)
    by_hand = torch.nn.functional.cross_entropy(
        out.logits[:, 2:-1].reshape(-1, out.logits.shape[-1]), text[:, 3:].reshape(-1)
    )
    torch.testing.assert_close(out.loss, by_hand)


def test_our_sampler_equals_decoding_without_a_cache(tuned: Any, text: Any, tools: Any) -> None:
    ids, mask = tools.padded(text, 3)
    mask[0, :2], ids[0, :2] = 1, 9  # one row is padded less
    wanted = tools.greedy_without_cache(tuned, ids, mask, 8)
    got = sample(
        tuned, ids, mask, max_new_tokens=8, eos_token_ids=[-1], pad_token_id=2, temperature=0
    )
    assert torch.equal(got.completion_ids, wanted)
    with torch.no_grad():
        scored = token_logprobs(tuned, got.input_ids, got.attention_mask, ids.shape[1])
    torch.testing.assert_close(got.logprobs, scored, rtol=1e-4, atol=2e-5)


def test_rows_that_end_leave_the_sampler(tuned: Any, text: Any, tools: Any) -> None:
    """Cutting rows out of the cache keeps the others' completions."""
    mask = torch.ones_like(text)
    wanted = tools.greedy_without_cache(tuned, text, mask, 8)
    stop = int(wanted[0, 2])
    got = sample(
        tuned, text, mask, max_new_tokens=8, eos_token_ids=[stop], pad_token_id=2, temperature=0
    )
    width = got.completion_ids.shape[1]
    expected = wanted[:, :width].masked_fill(~got.completion_mask, 2)
    assert torch.equal(got.completion_ids, expected)
    assert bool(got.ended[0])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_equals_decoding_without_a_cache(
    tuned: Any, text: Any, tools: Any, use_cache: bool
) -> None:
    ids, mask = tools.padded(text, 3)
    wanted = tools.greedy_without_cache(tuned, ids, mask, 6)
    tuned.generation_config.eos_token_id = None
    got = tuned.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=use_cache
    )
    assert torch.equal(got[:, ids.shape[1] :], wanted)


def test_beam_search_reorders_the_cache(tuned: Any, text: Any) -> None:
    tuned.generation_config.eos_token_id = None
    beams = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    mask = torch.ones_like(text)
    cached = tuned.generate(text, attention_mask=mask, use_cache=True, **beams)
    slow = tuned.generate(text, attention_mask=mask, use_cache=False, **beams)
    assert torch.equal(cached, slow)


def test_continuing_a_returned_cache(tuned: Any, text: Any) -> None:
    """Five tokens, then the last two with the cache of the first call, several at once."""
    with torch.no_grad():
        whole = tuned(text).logits[:, 5:]
        first = tuned(text[:, :5], use_cache=True)
        rest = tuned(text[:, 5:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=2e-5)


def test_eager_attention_equals_sdpa(tuned: Any, text: Any, tools: Any) -> None:
    ids, mask = tools.padded(text, 2)
    with torch.no_grad():
        fused = [tuned(text).logits, tuned(ids, attention_mask=mask).logits[:, 2:]]
        tuned.set_attn_implementation("eager")
        plain = [tuned(text).logits, tuned(ids, attention_mask=mask).logits[:, 2:]]
    torch.testing.assert_close(plain, fused, rtol=1e-4, atol=2e-5)


def test_gradient_checkpointing_gives_the_same_gradients(tuned: Any, text: Any, tools: Any) -> None:
    def grads() -> dict[str, torch.Tensor]:
        return tools.gradients(tuned, tuned(text, labels=text, use_cache=False).loss)

    for module in tuned.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "layerdrop", "attention_dropout"):  # OPT keeps numbers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    tuned.train()
    wanted = grads()
    tuned.gradient_checkpointing_enable()
    got = grads()
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_remove_restores_bitwise(model: Any, kind: str, text: Any, tools: Any) -> None:
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    before, logits = tools.snapshot(model), model(text).logits
    apply, remove = APPLY[kind]
    tools.randomize(apply(model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(text, labels=text).loss.backward()
    optimizer.step()
    assert (model(text).logits - logits).abs().max() > 0.01
    assert remove(model) is model
    tools.assert_restored(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(text).logits, logits)
    apply(model)  # and it can be put on again
    remove(model)
    tools.assert_restored(model, before)


def test_a_copy_is_independent(tuned: Any, kind: str, text: Any) -> None:
    """A deep copy (a frozen reference of the policy) has its own adapter and can be taken apart."""
    tuned(text, labels=text).loss.backward()
    wanted = tuned(text).logits.detach()
    twin = copy.deepcopy(tuned)
    assert torch.equal(twin(text).logits, wanted)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    assert not torch.equal(tuned(text).logits, wanted)
    assert torch.equal(twin(text).logits, wanted)
    APPLY[kind][1](twin)
    assert adapters.applied(twin) is None
    assert adapters.applied(tuned) is not None
    parts_of(tuned)


def test_the_adapter_alone_is_saved_and_loaded(
    tuned: Any, kind: str, text: Any, tmp_path: Any
) -> None:
    from safetensors.torch import load_file, save_file

    wanted = tuned(text).logits
    save_file(adapters.adapter_state(tuned), tmp_path / "adapter.safetensors")
    APPLY[kind][0](APPLY[kind][1](tuned))
    assert not torch.equal(tuned(text).logits, wanted)
    adapters.load_adapter_state(tuned, load_file(tmp_path / "adapter.safetensors"))
    assert torch.equal(tuned(text).logits, wanted)


def test_bad_states_are_refused_and_change_nothing(tuned: Any, text: Any) -> None:
    wanted = tuned(text).logits
    state = adapters.adapter_state(tuned)
    name = next(key for key in state if not key.startswith("setting."))
    bad = {
        "1 are missing": {k: v for k, v in state.items() if k != name},
        "1 are unknown": {**state, "extra": torch.zeros(2)},
        "in the weights to load": {**state, name: torch.zeros(99)},
        "nan or inf": {**state, name: torch.full_like(state[name], torch.inf)},
    }
    for message, wrong in bad.items():
        with pytest.raises(CourseError, match=message):
            adapters.load_adapter_state(tuned, wrong)
    assert torch.equal(tuned(text).logits, wanted)


def test_twice_and_when_absent(model: Any, kind: str, tools: Any) -> None:
    apply, remove = APPLY[kind]
    before = tools.snapshot(model)
    with pytest.raises(CourseError, match="carries no adapter"):
        remove(model)
    with pytest.raises(CourseError, match="carries no adapter"):
        adapters.adapter_state(model)
    tools.assert_restored(model, before)
    apply(model)
    for other, _ in APPLY.values():
        with pytest.raises(CourseError, match="already carries"):
            other(model)
    wrong = adapters.remove_lora if kind != "lora" else adapters.remove_bitfit
    with pytest.raises(CourseError, match="the model carries"):
        wrong(model)
    remove(model)
    tools.assert_restored(model, before)


def test_weights_that_are_not_finite_are_refused(model: Any, kind: str, tools: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[0] = float("nan")
    if kind == "bitfit" and type(model).__name__.startswith("Llama"):
        return  # nothing is taken from the weights: the biases are new
    with pytest.raises(CourseError, match="nan or inf"):
        APPLY[kind][0](model)
    assert adapters.applied(model) is None
    assert all(p.requires_grad for p in model.parameters())


def test_a_peft_model_is_refused(model: Any, kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    target = "c_attn" if type(model).__name__.startswith("GPT2") else "q_proj"
    wrapped = get_peft_model(model, LoraConfig(target_modules=[target]))
    with pytest.raises(CourseError, match="PEFT"):
        APPLY[kind][0](wrapped)


def test_half_precision_base(model: Any, kind: str, text: Any, tools: Any) -> None:
    """Adapters stay float32 on a bfloat16 base (its own biases excepted), and it all runs."""
    tuned = tools.randomize(APPLY[kind][0](model.bfloat16()), 0.1)
    record = adapters.applied(tuned)
    added = [p for n, p in tuned.named_parameters() if n in set(record.names) - set(record.flags)]
    if kind != "bitfit":
        assert {p.dtype for p in added} == {torch.float32}
    loss = tuned(text, labels=text).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert tuned(text).logits.dtype == torch.bfloat16
