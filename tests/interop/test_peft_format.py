"""Our LoRA in PEFT's files: every layer, single ones, GPT-2's transposed weights, wrong requests.

(test_interop.py has a process read them that knows nothing of this package.)
"""

import copy
import json

import pytest
import torch

from course_utils.adapters import apply_lora, merge_lora, remove_lora, save_as_peft
from course_utils.composition import AdapterSet, describe_base
from course_utils.errors import CourseError

from .made import logits, louder, trained_lora


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_layer_and_single_ones(tmp_path, tiny_model, family: str) -> None:
    """GPT-2 keeps its weights transposed; a full name must not reach the other layer."""
    from peft import PeftModel
    from transformers import GPT2Config, GPT2LMHeadModel

    if family == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, initializer_range=0.3)
        model, one = GPT2LMHeadModel(config).eval(), "transformer.h.1.attn.c_attn"
    else:
        model, one = louder(tiny_model), "model.layers.1.mlp.down_proj"
    ids = list(range(5, 25))
    for targets in (None, [one]):
        base = copy.deepcopy(model)
        ours = trained_lora(copy.deepcopy(model), rank=2, targets=targets)
        place = save_as_peft(ours, tmp_path / "adapter")
        theirs = PeftModel.from_pretrained(base, str(place))
        torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), rtol=1e-4, atol=1e-4)
        assert sum("lora_A" in n for n, _ in theirs.named_parameters()) == (
            1 if targets else {"gpt2": 8, "llama": 14}[family]
        )


def test_an_exported_lora_knows_its_base(tmp_path, tiny_model) -> None:
    model = louder(tiny_model)
    plain = copy.deepcopy(model)
    trained_lora(model, rank=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    place = save_as_peft(model, tmp_path / "adapter")
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    saved = json.loads((place / "course_base.json").read_text())
    assert saved["fingerprint"] == describe_base(plain)["fingerprint"]
    adapters = AdapterSet(copy.deepcopy(plain))
    adapters.add("mine", place)
    adapters.set("mine")
    ids = list(range(5, 25))
    torch.testing.assert_close(logits(adapters.model, ids), logits(model, ids))
    louder(plain, 1.5)
    with pytest.raises(CourseError, match="trained on another base"):
        AdapterSet(plain).add("mine", place)


def test_what_is_no_peft_lora_is_refused(tmp_path, tiny_model) -> None:
    from course_utils.adapters import apply_houlsby, lora_layers, remove_houlsby

    def refuses(message: str) -> None:
        with pytest.raises(CourseError, match=message):
            save_as_peft(tiny_model, tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()

    refuses("carries no adapter")
    apply_houlsby(tiny_model, 4)
    refuses("not LoRA")
    remove_houlsby(tiny_model)
    apply_lora(tiny_model, rank=2)
    merge_lora(tiny_model)
    refuses("is merged into its weight")
    remove_lora(tiny_model)
    apply_lora(tiny_model, rank=2)
    layer = next(iter(lora_layers(tiny_model).values()))
    layer.scaling *= 2
    refuses("differ in rank, scaling or dropout")
    layer.scaling /= 2
    with torch.no_grad():
        layer.B[0, 0] = float("nan")
    refuses("nan or inf")
