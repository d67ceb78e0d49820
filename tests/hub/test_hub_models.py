"""Models through the local Hub: the policy loader by Hub id, cut and refused downloads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from course_utils.errors import CourseError
from course_utils.models import load_policy

from .server import Hub

ID = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture
def saved(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> dict[str, bytes]:
    """The files of a model repository."""
    folder = tmp_path / "saved"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_policy_is_loaded_by_its_hub_id_and_then_from_the_cache(
    hub: Hub, saved: dict[str, bytes], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, saved, kind="models")
    model, tokenizer = load_policy(ID)
    assert torch.equal(model.lm_head.weight, tiny_model.lm_head.weight)
    assert tokenizer.chat_template
    assert hub.sent["model.safetensors"] == len(saved["model.safetensors"])
    hub.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again, _ = load_policy(ID)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_cut_download_of_weights_goes_on(
    hub: Hub, saved: dict[str, bytes], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.add(ID, saved, kind="models")
    hub.fail("model.safetensors", method="GET", cut_after=50_000)
    model, _ = load_policy(ID)
    assert "bytes=50000-" in hub.ranges
    assert torch.equal(model.lm_head.weight, tiny_model.lm_head.weight)


def test_weights_that_never_arrive_are_never_used(hub: Hub, saved: dict[str, bytes]) -> None:
    hub.add(ID, saved, kind="models")
    hub.fail("model.safetensors", times=1_000, method="GET", cut_after=5_000)
    with pytest.raises(Exception, match=r"."):
        load_policy(ID)
    cache = Path(constants.HF_HUB_CACHE)
    assert not list(cache.rglob("snapshots/*/model.safetensors"))
    hub.faults.clear()
    load_policy(ID)


def test_a_gated_model_says_what_to_do(hub: Hub, saved: dict[str, bytes]) -> None:
    hub.add(ID, saved, kind="models", gated=True)
    with pytest.raises(CourseError, match="accept its terms on its Hub page"):
        load_policy(ID)
