"""What must be light stays light: no torch, no transformers, nothing big before it is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "pandas", "plotly", "numpy")
LIGHT = (
    "course_utils",
    "course_utils.cli",
    "course_utils.doctor",
    "course_utils.errors",
    "course_utils.files",
    "course_utils.hardware",
    "course_utils.tier_table",
    "course_utils.tiers",
)


def run_python(code: str, **environ: str | None) -> str:
    variables = {**os.environ, **{k: v for k, v in environ.items() if v is not None}}
    for name in (name for name, value in environ.items() if value is None):
        variables.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=variables,
        cwd=Path(__file__).resolve().parent.parent,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", LIGHT)
def test_importing_brings_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_help_brings_in_nothing_heavy() -> None:
    code = (
        "import sys\nfrom course_utils.cli import main\nsys.stdout = sys.stderr\n"
        "for argv in (['--help'], ['run', '--help'], ['world', '--help']):\n"
        "    try: main(argv)\n    except SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.__stdout__)"
    )
    assert run_python(code) == "[]"


def test_lazy_names_are_listed_and_a_wrong_one_is_an_attribute_error() -> None:
    import course_utils

    assert "PPOTrainer" in dir(course_utils)
    assert course_utils.tiers.TIERS["tiny"].name == "tiny"
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = course_utils.nothing_such


def test_openmp_threads_do_not_spin_unless_the_user_says_so() -> None:
    names = "('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')"
    show = f"import course_utils, os; print(*(os.environ[name] for name in {names}))"
    assert run_python(show, OMP_WAIT_POLICY=None, GOMP_SPINCOUNT=None) == "PASSIVE 0"
    assert run_python(show, OMP_WAIT_POLICY="ACTIVE", GOMP_SPINCOUNT="9") == "ACTIVE 9"
