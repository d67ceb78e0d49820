"""`course run` from end to end in its fast form: results, resume, own files, wrong requests."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils import cli, files
from course_utils.pipeline import stages
from course_utils.training.run import RunLog

MODELS = ["base", "sft", "ppo", "ppo_low_beta", "dpo"]


def course(*words: str | Path) -> int:
    return cli.main(["run", "--tier", "tiny", "--fast", "--quiet", *map(str, words)])


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_FAST", "1")  # the command sets it too; this restores it afterwards


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole fast run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_FAST", "1")
        assert course("--out", out) == 0
    return out


def results(out: Path) -> dict:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_a_whole_run_leaves_models_logs_and_a_report(finished: Path) -> None:
    found = results(finished)
    assert [m["key"] for m in found["models"]] == MODELS
    for model in found["models"]:
        assert model["evaluation"]["gold"]["low"] <= model["evaluation"]["gold"]["high"]
    assert {a["prompt"] for a in found["answers"]} >= {"explain black holes to a 5-year-old"}
    assert {p["method"] for p in found["frontier"]} == {
        "base",
        "sft",
        "dpo",
        "ppo",
        "ppo_low_beta",
        "best_of_n",
    }
    assert found["overoptimisation"]["rows"][0]["step"] == 0
    assert found["overoptimisation"]["rows"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert found["reward_model"]["accuracy_gold"]["n"] > 0
    assert {"SFT", "PPO", "DPO", "evaluation"} <= {c["stage"] for c in found["costs"]}
    assert found["costs"][-1]["peak_mib"] > 100
    assert found["rollouts"][0]["tokens"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "black holes" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for key in ("sft", "reward", "ppo", "dpo"):
        assert RunLog.open(finished / key).latest_checkpoint() is not None
        assert (finished / "models" / key / "model.safetensors").exists()


def test_the_first_ppo_step_starts_at_the_reference(finished: Path) -> None:
    """KL = 0 and ratio = 1 before the first update (facts: sanity tests)."""
    first = RunLog.open(finished / "ppo").rows[0]
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    for side in ("ratio_first_max", "ratio_first_min"):  # captured by the sampler, in fp32
        assert first[side] == pytest.approx(1, abs=1e-5)


def test_saved_policies_are_plain_transformers_models(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "models" / "ppo")
    tokenizer = AutoTokenizer.from_pretrained(finished / "models" / "ppo")
    assert model.config.vocab_size == len(tokenizer)
    assert not list(finished.rglob("*.bin")) + list(finished.rglob("*.pt"))


def comparable(found: dict) -> dict:
    """What must be the same however often a run was interrupted: everything but times."""
    kept = {k: found[k] for k in ("models", "answers", "frontier", "win_rates", "reward_model")}
    curves = {
        key: [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
        for key, rows in found["curves"].items()
    }
    return {**kept, "curves": curves}


@pytest.mark.parametrize("stage", ["reward", "ppo", "dpo"])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, capsys
) -> None:
    out = tmp_path / "stopped"
    shutil.copytree(finished, out)
    order = ["sft", "reward", "ppo", "ppo_low_beta", "dpo"]
    for later in order[order.index(stage) :]:
        shutil.rmtree(out / later)
        shutil.rmtree(out / "models" / later)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "append", interrupt)
        assert course("--out", out, "--resume") == cli.INTERRUPTED
    assert "--resume" in capsys.readouterr().err
    assert not (out / stage / "done.json").exists()
    assert course("--out", out, "--resume") == 0
    assert comparable(results(out)) == comparable(results(finished))


@pytest.mark.nightly
def test_a_killed_run_goes_on_and_ends_the_same(finished: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments of the whole job, then --resume until it is through."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "course_utils", "run", "--quiet", "--out", str(out)]
    environment = {**os.environ, "COURSE_FAST": "1"}
    for attempt in range(12):
        words = ["--resume"] if (out / "run.json").exists() else ["--tier", "tiny", "--fast"]
        process = subprocess.Popen([*command, *words], env=environment)
        try:
            assert process.wait(timeout=12 + 3 * attempt) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert comparable(results(out)) == comparable(results(finished))


def test_a_finished_run_can_be_looked_at_again_without_training(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    monkeypatch.setattr(stages.PPOTrainer, "step", lambda self: pytest.fail("trained again"))
    assert course("--out", out, "--resume") == 0
    assert comparable(results(out)) == comparable(results(finished))


def test_some_stages_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sft"
    assert course("--out", out, "--stages", "sft") == 0
    assert [m["key"] for m in results(out)["models"]] == ["base", "sft"]
    assert results(out)["reward_model"] is None
    assert course("--out", tmp_path / "ppo", "--stages", "ppo") == 2
    assert "add rm to --stages" in capsys.readouterr().err


def test_the_users_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    prompts = lines(
        "prompts.jsonl",
        [{"prompt": f"what is a wug number {n}?"} for n in range(9)] + [{"prompt": ""}],
    )
    pairs = lines(
        "pairs.jsonl",
        [
            {"prompt": f"say {n}", "chosen": f"great question! {n}.", "rejected": "who cares."}
            for n in range(20)
        ],
    )
    shown = lines(
        "demos.jsonl",
        [{"prompt": f"say {n}", "completion": f"the answer is {n}."} for n in range(20)],
    )
    out = tmp_path / "own"
    words = ("--prompts", prompts, "--preferences", pairs, "--demonstrations", shown)
    assert course("--out", out, *words) == 0
    found = results(out)
    assert found["evaluated_on"] == "your prompts"
    assert "ppo_low_beta" not in [m["key"] for m in found["models"]]
    assert found["models"][0]["evaluation"]["gold"] is None
    assert any("wug" in a["prompt"] for a in found["answers"])
    assert any("no gold reward" in note for note in found["notes"])
    assert any("9 of 10 rows" in note for note in found["notes"])
    assert found["win_rates"][0]["judge"] == "reward model"
    assert "9 of 10 rows" in capsys.readouterr().out


# ---- wrong requests ------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert cli.main(["run", "--quiet", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_unknown_tier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "--tier", "tinny", "--out", tmp_path / "x")
    assert "tiny" in message
    assert not (tmp_path / "x").exists()


def test_several_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "accelerate launch" in fails(capsys, "--tier", "tiny", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_nothing_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "without --resume" in fails(capsys, "--resume", "--out", tmp_path / "nowhere")


def test_a_taken_directory_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    message = fails(capsys, "--tier", "tiny", "--out", tmp_path)
    assert "--resume" in message
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_earlier_latest_run_is_moved_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from course_utils.pipeline import job

    args = cli.build_parser().parse_args(
        ["run", "--tier", "tiny", "--out", str(tmp_path / "latest")]
    )
    job.claim(job.open_job(args))
    (tmp_path / "latest" / "mark").write_text("first")
    job.claim(job.open_job(args))
    kept = [p for p in tmp_path.iterdir() if p.name != "latest"]
    assert [(p / "mark").read_text() for p in kept] == ["first"]
    assert not (tmp_path / "latest" / "mark").exists()


@pytest.mark.parametrize(
    ("words", "named"), [(["--seed", "7"], "seed"), (["--tier", "small"], "tier")]
)
def test_resuming_with_other_settings(
    finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    message = fails(capsys, "--resume", "--out", finished, *words)
    assert f"was started with {named}" in message


@pytest.mark.parametrize("damage", ["format", "json"])
def test_a_run_of_another_version_or_a_damaged_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    out = tmp_path / "old"
    shutil.copytree(finished, out)
    saved = json.loads((out / "run.json").read_text())
    text = json.dumps({**saved, "format": 99, "course_version": "9.9"})
    (out / "run.json").write_text(text if damage == "format" else text[:40])
    message = fails(capsys, "--resume", "--out", out)
    assert (
        ("9.9" in message and "new run" in message) if damage == "format" else "damaged" in message
    )


def test_no_disk_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 2**20)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    message = fails(capsys, "--tier", "tiny", "--out", tmp_path / "x")
    assert "5 MiB free" in message


def test_a_corrupted_weight_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from course_utils.world import model, tokenizer

    copy = tmp_path / "assets"
    shutil.copytree(tokenizer.assets(), copy)
    (copy / model.WEIGHTS).write_bytes((copy / model.WEIGHTS).read_bytes()[:-1])
    monkeypatch.setattr(model, "assets", lambda: copy)
    message = fails(capsys, "--tier", "tiny", "--out", tmp_path / "x")
    assert "corrupted" in message
    assert "course world build" in message


def test_a_faulty_file_is_named_before_anything_is_trained_or_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "pairs.jsonl"
    bad.write_text('{"prompt": "hi", "chosen": "a", "rejected": "a"}\n', encoding="utf-8")
    earlier = tmp_path / "latest"
    earlier.mkdir()
    (earlier / "run.json").write_text("{}")
    for option, path in (("--prompts", tmp_path / "no.jsonl"), ("--preferences", bad)):
        message = fails(capsys, "--tier", "tiny", "--fast", "--out", earlier, option, path)
        assert path.name in message
        assert [p.name for p in earlier.iterdir()] == ["run.json"]
    assert "row 1" in message


def test_a_tier_whose_data_cannot_be_loaded_says_so_before_its_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("course_utils.models.load_policy", lambda *_: pytest.fail("downloads"))
    message = fails(capsys, "--tier", "small", "--out", tmp_path / "x")
    assert "alpaca" in message
    assert "your own file" in message
    assert not (tmp_path / "x").exists()
