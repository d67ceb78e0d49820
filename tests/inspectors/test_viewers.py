"""What the viewers share: marks of methods, style sheets that leave others alone."""

import re
from pathlib import Path
from typing import Any

import pytest

from course_utils import inspectors
from course_utils.inspectors import page
from course_utils.inspectors.methods import SHAPES, method_key, methods

HERE = Path(page.__file__).parent
OWN = ("viewers.css", "cards.css", "ranking.css", "rewards.css", "composer.css")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("RewardInspector", ([1.0, 2.0], [0.0, 3.0])),
        ("FrontierViewer", ([{"method": "ppo", "kl": 1.0, "gold": 2.0}],)),
        ("AnswerComparer", ([{"prompt": "p", "answers": {"sft": "hello"}}],)),
        ("ForgettingPlot", ({"full": [{"step": 0, "task_loss": 2.0, "base_loss": 1.0}]},)),
        ("AdapterComposer", (["a"], lambda weights: {"style": weights["a"]})),
    ],
)
def test_three_layers_of_each(name: str, given: tuple[Any, ...]) -> None:
    inspector = getattr(inspectors, name)(*given)
    data, _ = inspector.mimebundle()
    assert data["text/plain"] == repr(inspector)
    assert data["text/plain"].startswith(f"{name}: ")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert len(data["text/html"].encode()) < 60_000
    assert inspector.summary()


def test_up_to_eight_methods_differ_in_colour_and_in_mark() -> None:
    for keys in (list("abcdefgh"), ["base", "sft", "ppo", "dpo", "full", "lora", "x", "y"]):
        found = methods(keys)
        assert len({m["tone"] for m in found}) == 8
        assert len({m["shape"] for m in found}) == 8
        assert {m["shape"] for m in found} == set(SHAPES)
    assert len(methods(map(str, range(40)))) == 40


def test_a_known_method_looks_the_same_everywhere() -> None:
    assert methods(["ppo", "x"])[0] == methods(["a", "b", "ppo"])[2]
    assert method_key("Best of n") == method_key("best-of-n") == "best_of_n"
    assert method_key("LoRA r=8") == "LoRA r=8"
    assert methods(["sft", "sft"], {"sft": "mine"})[0]["label"] == "mine"


def test_every_tone_is_a_class_of_the_base_sheet() -> None:
    sheet = (HERE / "base.css").read_text()
    for method in methods([*"abcdefgh", "base", "sft", "best_of_n", "ppo", "ppo_low_beta", "dpo"]):
        assert f".{method['tone']} {{" in sheet


def test_sheets_style_no_class_of_another_inspector() -> None:
    """All sheets of a notebook's inspectors apply to the whole page."""

    def classes(file: Path) -> set[str]:
        """Classes that a rule ends with: those it styles."""
        text = re.sub(r"/\*.*?\*/|@[^{]*\{", "", file.read_text(), flags=re.DOTALL)
        heads = [part for head in re.findall(r"([^{};]+)\{", text) for part in head.split(",")]
        return {
            m for head in heads for m in re.findall(r"\.([a-z][\w-]*)[^.\s]*\s*$", head.strip())
        }

    own = set().union(*(classes(HERE / name) for name in OWN)) - {"cui"}
    base = classes(HERE / "base.css")
    for file in HERE.rglob("*.css"):
        if file.name not in (*OWN, "base.css"):
            assert not (classes(file) - base - {"cui"}) & own, file.name
