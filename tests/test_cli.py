"""The command line: arguments reach the module, errors become messages and exit codes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from course_utils import cli
from course_utils.errors import DataError

HERE = Path(__file__).resolve().parent.parent


def install(monkeypatch: pytest.MonkeyPatch, module: str, main) -> None:
    """Puts a module with this `main` in the place of the real one."""
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(main=main))


def test_run_passes_every_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    install(monkeypatch, "course_utils.pipeline", lambda args: seen.append(args) or 0)
    assert cli.main(["run"]) == 0
    options = (
        "--tier tiny --seed 7 --stages dpo,sft --resume --out there --quiet "
        "--prompts p.jsonl --preferences q.csv --demonstrations d.parquet"
    )
    assert cli.main(["run", *options.split()]) == 0
    default, full = seen
    assert (default.tier, default.seed, default.stages) == (None, 0, ("sft", "rm", "ppo", "dpo"))
    assert (default.out, default.resume, default.prompts) == (Path("runs/latest"), False, None)
    assert (full.tier, full.seed, full.stages) == ("tiny", 7, ("sft", "dpo"))  # pipeline order
    assert (full.out, full.resume, full.quiet) == (Path("there"), True, True)
    assert (full.prompts, full.preferences) == (Path("p.jsonl"), Path("q.csv"))
    assert full.demonstrations == Path("d.parquet")


def test_fast_reaches_every_choice_of_a_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_FAST", "0")
    fast: list[str] = []
    install(
        monkeypatch, "course_utils.pipeline", lambda _: fast.append(os.environ["COURSE_FAST"]) or 0
    )
    cli.main(["run", "--fast"])
    assert fast == ["1"]


def test_the_exit_code_of_the_work_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "course_utils.build", lambda args: 1 if args.check else 0)
    assert cli.main(["build"]) == 0
    assert cli.main(["build", "--check"]) == 1


def test_a_users_mistake_is_a_message_without_a_traceback(monkeypatch, capsys) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise DataError("prompts.jsonl row 17: empty prompt; delete the row")

    install(monkeypatch, "course_utils.pipeline", fail)
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err == (
        "course: prompts.jsonl row 17: empty prompt; delete the row\n"
    )


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise ZeroDivisionError

    install(monkeypatch, "course_utils.pipeline", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(monkeypatch, capsys) -> None:
    def interrupt(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    install(monkeypatch, "course_utils.pipeline", interrupt)
    assert cli.main(["run", "--out", "runs/mine"]) == 130
    message = capsys.readouterr().err
    assert "last checkpoint in runs/mine are kept" in message
    assert "course run --resume --out runs/mine" in message


def test_a_missing_package_points_to_the_doctor(monkeypatch, capsys) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'trl.trainer'", name="trl.trainer")

    install(monkeypatch, "course_utils.pipeline", fail)
    assert cli.main(["run"]) == 2
    message = capsys.readouterr().err
    assert '"trl.trainer" is missing' in message
    assert "course doctor" in message


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "--stages", "sft,sleep"], "unknown stage sleep"),
        (["run", "--stages", ","], "no stage given"),
        (["run", "--seed", "-1"], "whole number"),
        (["run", "--seed", "1.5"], "whole number"),
        (["walk"], "invalid choice"),
        (["world"], "ACTION"),
    ],
)
def test_wrong_arguments_are_refused(argv, said, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_no_command_prints_the_list(capsys) -> None:
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("doctor", "run", "build", "world"))


def test_world_check_names_a_corrupted_file(monkeypatch, tmp_path, capsys) -> None:
    from course_utils.world import model

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "manifest.json").write_text('{"sha256": {"config.json": "0000"}}')
    monkeypatch.setattr(model, "assets", lambda: tmp_path)
    assert cli.main(["world", "check"]) == 2
    assert f"{tmp_path / 'config.json'} is corrupted" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, 100_000])  # the pipe breaks at the flush, or while printing
def test_a_closed_pipe_is_silent(lines: int) -> None:
    code = f"""
import sys, types
from course_utils import cli
sys.modules["course_utils.build"] = types.SimpleNamespace(
    main=lambda args: [print("line") for _ in range({lines})] and 0)
sys.exit(cli.main(["build"]))
"""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.returncode == cli.PIPE_CLOSED
    assert done.stderr == ""


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", "--version"],
        capture_output=True,
        text=True,
        cwd=HERE,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("course ")
