"""What a wheel holds: every file of the package that is not Python, as Colab installs it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = {".py", ".pyc", ".md"}  # notes for those who change the package


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["course_utils"]
    package = ROOT / "course_utils"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    there = {p for p in package.rglob("*") if p.is_file() and p.suffix not in NOT_SHIPPED}
    assert there - shipped == set()
    for pattern in patterns:
        assert list(package.glob(pattern)), f"{pattern} matches nothing"
