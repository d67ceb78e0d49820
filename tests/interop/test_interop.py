"""What is saved here is read by the libraries themselves: in processes that know nothing of us."""

import copy
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from course_utils import publish
from course_utils.adapters import save_as_peft
from course_utils.training.reward_model import RewardModel, padding_id, sequence_classifier

from .made import logits, louder, trained_lora

_spec = importlib.util.spec_from_file_location(
    "interop_conftest", Path(__file__).parents[1] / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conftest)

CHAT = [{"role": "user", "content": "explain the moon landing to a 6 year old"}]
ANSWER = {"role": "assistant", "content": "people went to the moon with a rocket"}

ASKED = ["explain the moon landing", "why", "hello"]
ANSWERS = ["sure", "no it is not", "yes"]
IDS = list(range(5, 25))
SIDES = ("right", "left")

STRANGER = """
import json, pathlib, sys
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer

told = json.loads(pathlib.Path("told.json").read_text())
ids, found = torch.tensor([told["ids"]]), {}

def policy(place):
    model, words = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    asked = words.apply_chat_template(told["chat"], add_generation_prompt=True)["input_ids"]
    config = model.generation_config
    return {"ids": asked, "logits": model(torch.tensor([asked])).logits[0],
            "template": words.chat_template, "side": words.padding_side,
            "made": model.generate(torch.tensor([asked]), max_new_tokens=4, do_sample=False),
            "ends": [words.eos_token_id, words.pad_token_id, config.eos_token_id,
                     config.pad_token_id]}

def adapter(base, place):
    on = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place)
    named = AutoPeftModelForCausalLM.from_pretrained(place)
    return {"named": named(input_ids=ids).logits[0], "on": on(input_ids=ids).logits[0]}

def reward(place):
    model = AutoModelForSequenceClassification.from_pretrained(place)
    words, config = AutoTokenizer.from_pretrained(place), model.config
    result = {"labels": config.num_labels, "side": words.padding_side}
    for side in ("right", "left"):
        words.padding_side = side
        batch = words.apply_chat_template(told["answered"], padding=True, return_tensors="pt",
                                          return_dict=True)
        raw = model(**batch).logits.squeeze(-1)
        result[side] = ((raw - config.reward_mean) / config.reward_std).tolist()
    return result

def dpo(place):
    rows = Dataset.from_list([told["pair"]] * 2)
    arguments = DPOConfig("out", max_steps=1, per_device_train_batch_size=2, use_cpu=True,
                          report_to="none", bf16=False, learning_rate=1e-3, logging_steps=1,
                          save_strategy="no", model_init_kwargs={"dtype": "float32"})
    trainer = DPOTrainer(model=place, processing_class=AutoTokenizer.from_pretrained(place),
                         train_dataset=rows, args=arguments)
    with torch.enable_grad():
        trainer.train()
    trainer.save_model("trained")
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]

with torch.no_grad():
    for name, task, *places in told["tasks"]:
        found[name] = globals()[task](*places)
assert not [name for name in sys.modules if name.split(".")[0] == "course_utils"]
torch.save(found, "found.pt")
"""


def ask_a_stranger(room: Path, tasks: list[list[str]]) -> dict[str, Any]:
    """Has a new process with plain libraries read what lies at some places; what it found.

    Args: tasks: (name in the result, function of STRANGER, its places).
    """
    answered = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
        for a, b in zip(ASKED, ANSWERS, strict=True)
    ]
    pair = {"prompt": CHAT, "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "no"}]}
    told = {"ids": IDS, "chat": CHAT, "answered": answered, "pair": pair, "tasks": tasks}
    (room / "told.json").write_text(json.dumps(told), encoding="utf-8")
    (room / "script.py").write_text(STRANGER, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=room,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(room / "found.pt", weights_only=True)


class Saved(NamedTuple):
    """What the tests saved, and what a stranger found in it."""

    tokenizer: Any
    ours: dict[str, Any]
    found: dict[str, Any]
    room: Path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    room = tmp_path_factory.mktemp("saved")
    tokenizer, ours = conftest.build_tokenizer(), {}
    model = louder(conftest.build_model(tokenizer))
    base = publish.save_model(room / "policy", model, tokenizer)
    asked = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    ours["policy"] = {"ids": asked, "logits": logits(model, asked), "weights": model.state_dict()}

    torch.manual_seed(0)
    config = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    publish.save_model(room / "peft", theirs, tokenizer)
    ours["peft"] = logits(theirs, IDS)

    lora = copy.deepcopy(model)
    trained_lora(lora, rank=3, alpha=7.0, targets=["q_proj", "v_proj"], rslora=True)
    save_as_peft(lora, room / "lora", base=base)
    ours["lora"], ours["plain"] = logits(lora, IDS), logits(model, IDS)

    for name in ("reward", "pad is eos"):
        words, start = copy.deepcopy(tokenizer), conftest.build_model(tokenizer)
        if name == "pad is eos":  # as SmolLM2 has it
            words.pad_token = words.eos_token
            start.config.pad_token_id = words.eos_token_id
        reward = reward_of(start, words)
        reward.save(room / name)
        ours[name] = reward(ASKED, ANSWERS)
        assert (words.pad_token == words.eos_token) == (name == "pad is eos")  # as it was

    places = [["policy", "policy", "policy"], ["dpo", "dpo", "policy"]]
    places += [["peft", "adapter", "policy", "peft"], ["lora", "adapter", "policy", "lora"]]
    places += [["reward", "reward", "reward"], ["pad is eos", "reward", "pad is eos"]]
    tasks = [[*names[:2], *(str(room / place) for place in names[2:])] for names in places]
    return Saved(tokenizer, ours, ask_a_stranger(room, tasks), room)


# ---- policies ----------------------------------------------------------------------------------


def test_a_saved_policy_needs_nothing_of_ours(saved: Saved) -> None:
    found, ours = saved.found["policy"], saved.ours["policy"]
    assert found["ids"] == ours["ids"]
    torch.testing.assert_close(found["logits"], ours["logits"])
    assert found["template"] == saved.tokenizer.chat_template
    assert found["ends"] == [saved.tokenizer.eos_token_id, saved.tokenizer.pad_token_id] * 2
    assert found["side"] == "left"


def test_plain_generate_stops_where_the_chat_template_ends(
    tmp_path, tiny_model, tiny_tokenizer
) -> None:
    """A base model with its own end of text, given a chat template that ends otherwise."""
    from transformers import AutoModelForCausalLM

    end = tiny_tokenizer.eos_token_id
    tiny_model.generation_config.eos_token_id = own = tiny_tokenizer.bos_token_id
    tiny_model.generation_config.pad_token_id = None
    place = publish.save_model(tmp_path / "policy", tiny_model, tiny_tokenizer)
    again = AutoModelForCausalLM.from_pretrained(place)
    assert again.generation_config.eos_token_id == [end, own]
    assert again.generation_config.pad_token_id == tiny_tokenizer.pad_token_id
    assert tiny_model.generation_config.eos_token_id == own  # the caller's is as it was
    # a model that says "end" whatever it is asked
    with torch.no_grad():
        again.lm_head.weight.zero_()
        again.model.norm.weight.zero_()

    class Ends(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            row = torch.zeros(again.config.vocab_size)
            row[end] = 9.0
            return row.expand(*hidden.shape[:-1], -1)

    again.lm_head = Ends()
    made = again.generate(torch.tensor([[9, 10]]), max_new_tokens=5, do_sample=False)
    assert made[0].tolist() == [9, 10, end]


@pytest.mark.nightly
def test_a_run_saves_policies_and_a_reward_model_for_plain_transformers(
    tmp_path, monkeypatch
) -> None:
    from course_utils import cli
    from course_utils.models import load_policy

    monkeypatch.setenv("COURSE_FAST", "1")
    monkeypatch.delenv("COURSE_TIER", raising=False)
    out = tmp_path / "run"
    words = ["run", "--tier", "tiny", "--fast", "--quiet", "--stages", "sft,rm", "--out", str(out)]
    assert cli.main(words) == 0
    places = {name: str(out / "models" / name) for name in ("sft", "reward")}
    tasks = [["sft", "policy", places["sft"]], ["reward", "reward", places["reward"]]]
    found = ask_a_stranger(tmp_path, tasks)
    policy, tokenizer = load_policy(places["sft"])
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    torch.testing.assert_close(found["sft"]["logits"], logits(policy, ids))
    assert found["sft"]["made"].shape[1] > len(ids)
    ours = RewardModel.load(places["reward"])(ASKED, ANSWERS)
    for side in SIDES:
        assert found["reward"][side] == pytest.approx(ours, abs=1e-3)


# ---- adapters ----------------------------------------------------------------------------------


def test_a_peft_policy_is_read_by_peft(saved: Saved) -> None:
    assert not (saved.room / "peft" / "model.safetensors").exists()  # the adapter alone
    for way in ("named", "on"):
        torch.testing.assert_close(saved.found["peft"][way], saved.ours["peft"])


def test_our_lora_is_read_by_peft(saved: Saved) -> None:
    ours = saved.ours["lora"]
    assert (ours - saved.ours["plain"]).abs().max() > 0.1
    for way in ("named", "on"):
        torch.testing.assert_close(saved.found["lora"][way], ours, rtol=1e-4, atol=1e-4)
    config = json.loads((saved.room / "lora" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]  # short, as people write them


# ---- TRL ---------------------------------------------------------------------------------------


def test_a_saved_policy_goes_straight_into_trls_dpo(saved: Saved) -> None:
    from course_utils.models import load_policy

    assert saved.found["dpo"] == pytest.approx([math.log(2)], abs=1e-3)  # policy = reference
    trained, _ = load_policy(str(saved.room / "trained"))  # and back to us
    before = saved.ours["policy"]["weights"]
    assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())


# ---- reward models -----------------------------------------------------------------------------


def reward_of(model: Any, tokenizer: Any) -> RewardModel:
    reward = RewardModel(sequence_classifier(louder(model)), tokenizer)
    with torch.no_grad():
        reward.head.weight.mul_(30)
    asked = ["explain the moon", "why", "hello what is it"]
    reward.fit_normalisation([(ask, answer) for ask in asked for answer in ("yes", "no rocket")])
    return reward


@pytest.mark.parametrize("name", ["reward", "pad is eos"])
def test_a_reward_model_scores_the_same_in_plain_transformers(saved: Saved, name: str) -> None:
    found, ours = saved.found[name], saved.ours[name]
    assert len({round(score, 2) for score in ours}) == 3
    for side in SIDES:
        assert found[side] == pytest.approx(ours, abs=1e-4)
    assert (found["labels"], found["side"]) == (1, "right")
    assert RewardModel.load(saved.room / name)(ASKED, ANSWERS) == pytest.approx(ours, abs=1e-5)


def test_padding_never_ends_an_answer(tiny_tokenizer) -> None:
    own, end = tiny_tokenizer.pad_token_id, tiny_tokenizer.eos_token_id
    assert padding_id(tiny_tokenizer) == own
    assert padding_id(tiny_tokenizer, trained_with=5) == 5
    assert padding_id(tiny_tokenizer, trained_with=end) == own
    assert padding_id(tiny_tokenizer, trained_with=10**6) == own  # of another vocabulary
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    assert padding_id(tiny_tokenizer) != end


# ---- the command and the page ------------------------------------------------------------------


def export(*words: Any) -> int:
    from course_utils import cli

    return cli.main(["export", *map(str, words)])


def test_an_adapter_is_merged_and_wrong_requests_are_said(saved: Saved, tmp_path, capsys) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    assert export(saved.room / "lora", "--to", "transformers", "--out", out) == 0
    merged, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    torch.testing.assert_close(logits(merged, IDS), saved.ours["lora"], rtol=1e-4, atol=1e-4)
    assert words.chat_template == saved.tokenizer.chat_template  # the base's: the adapter has none
    lost = shutil.copytree(saved.room / "lora", tmp_path / "lost")
    config = json.loads((lost / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (lost / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "models").mkdir(parents=True)
    for place, target, message in (
        (tmp_path / "run", tmp_path / "new", "is a run; export one of its models"),
        (tmp_path, tmp_path / "new", "holds no saved model"),
        (lost, tmp_path / "new", "is the base named in adapter_config.json still there?"),
        (out, out, "already exists"),
    ):
        assert export(place, "--to", "transformers", "--out", target) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_page_on_interop_runs(tmp_path, monkeypatch) -> None:
    """Every block of docs/interop.md, in order, in one empty directory."""
    pytest.importorskip("gguf")
    page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 9
    from course_utils import cli

    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/interop.md", "exec"), names)
            continue
        for line in block.splitlines():
            assert cli.main(shlex.split(line)[1:]) == 0, line
    assert float(names["theirs"].detach()) == pytest.approx(names["ours"][0], abs=1e-4)
