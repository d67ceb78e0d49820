# @title Setup: run this first. On Colab it installs the course; at home it changes nothing.
import importlib.util
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path

REPOSITORY = "@REPOSITORY@"  # the course on GitHub; empty before it is published
SHOWN = ("torch", "transformers", "trl", "peft", "datasets", "course_utils")


def install_on_colab():
    wheels = sorted(Path.cwd().glob("course_utils-*.whl"))  # an uploaded wheel comes first
    if not wheels and not REPOSITORY:
        raise SystemExit(
            "Upload the course's wheel (course_utils-….whl), then run this cell again."
        )
    source = str(wheels[-1]) if wheels else f"git+https://github.com/{REPOSITORY}"
    in_use = {name: version(name) for name in ("numpy", "pyarrow", "torch") if name in sys.modules}
    # peft refuses to work beside the torchao that Colab ships
    command = [sys.executable, "-m", "pip", "install", "-q", source, "torchao>=0.16"]
    subprocess.check_call(command)
    importlib.invalidate_caches()
    if replaced := [name for name, before in in_use.items() if version(name) != before]:
        raise SystemExit(
            f"{', '.join(replaced)} was replaced while in use: choose Runtime > Restart session, "
            "then run the notebook again from the top."
        )


if importlib.util.find_spec("course_utils") is None:
    if "google.colab" not in sys.modules:
        raise SystemExit(
            f"This kernel ({sys.executable}) does not have the course: run `make lab` in the "
            "course's folder, or choose its .venv as the kernel of this notebook."
        )
    install_on_colab()
found = {d.name.replace("-", "_"): d.version for d in distributions()}
print(f"Python {sys.version.split()[0]}", *(f"{n} {found.get(n, '–')}" for n in SHOWN), sep=" · ")
