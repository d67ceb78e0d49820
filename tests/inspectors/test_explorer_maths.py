"""Explorers: JavaScript computes what Python's own functions compute, over grids of inputs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from course_utils.adapters.svd import svd_energy
from course_utils.errors import CourseError
from course_utils.inspectors.explorers.bradley_terry import BradleyTerryExplorer
from course_utils.inspectors.explorers.chance import normals, uniforms
from course_utils.inspectors.explorers.dpo_beta import DPOExplorer
from course_utils.inspectors.explorers.explorer import Explorer
from course_utils.inspectors.explorers.kl_control import KLControlExplorer
from course_utils.inspectors.explorers.kl_estimators import KLExplorer
from course_utils.inspectors.explorers.lora_rank import SHAPES, LoRAExplorer
from course_utils.inspectors.explorers.nf4_levels import NF4Explorer
from course_utils.inspectors.explorers.ppo_clip import PPOClipExplorer
from course_utils.objectives.kl import kl_k1, kl_k3
from course_utils.quantization import code_book

from .twins import Maths, grid, hold, same

EXPLORERS = (
    PPOClipExplorer,
    KLExplorer,
    DPOExplorer,
    BradleyTerryExplorer,
    LoRAExplorer,
    NF4Explorer,
    KLControlExplorer,
)
OpenPage = Callable[..., Any]


# ---- the generator -----------------------------------------------------------------------------


def test_both_draw_the_same_numbers(open_page: OpenPage) -> None:
    maths = Maths(open_page, KLControlExplorer(), "uniforms normals")
    for seed in (0, 1, 9999):
        drawn = maths.run("(s) => [...own.uniforms(s, 500)]", seed)
        assert drawn == uniforms(seed, 500).tolist()
        same(normals(seed, 500).tolist(), maths.run("(s) => [...own.normals(s, 500)]", seed))


def test_the_numbers_are_uniform_and_seeds_differ() -> None:
    u = uniforms(3, 100_000)
    assert 0 < u.min() < u.max() < 1
    assert np.abs(np.histogram(u, 10)[0] / 10_000 - 1).max() < 0.05
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.01
    assert abs(np.corrcoef(u, uniforms(4, 100_000))[0, 1]) < 0.01
    z = normals(5, 50_000)
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02


# ---- one grid each -------------------------------------------------------------------------------


def test_ppo_clip(open_page: OpenPage) -> None:
    explorer = PPOClipExplorer()
    points = grid(
        ratio=(0.01, 0.5, 0.8, 1, 1.2, 1.5, 2.0, 10),
        advantage=(-100, -0.3, 0, 0.7),
        clip=(0.01, 0.2, 1),
        apart=(False, True),
        high=(0.01, 2),
        dual=(False, True),
        floor=(1.2, 2.0, 20),
    )
    hold(Maths(open_page, explorer), explorer, points)


def test_ppo_clip_says_what_it_means() -> None:
    explorer = PPOClipExplorer(ratio=1.5, advantage=2)
    assert explorer.frame()["gradient"] == 0
    assert explorer.frame(ratio=1.1)["gradient"] == 2
    assert explorer.frame(ratio=0.5)["region"] == "pulled back"
    assert explorer.frame(ratio=5, advantage=-1)["gradient"] == -1
    assert explorer.frame(ratio=5, advantage=-1, dual=True)["objective"] == -2
    with pytest.raises(CourseError, match="dual_clip must exceed"):
        explorer.frame(dual=True, floor=1.1)


def test_kl(open_page: OpenPage) -> None:
    explorer = KLExplorer()
    shapes = (
        [0.2] * 5,
        [0.97, 0.01, 0.01, 0.005, 0.005],
        [0.001, 1, 1, 1, 1],
        [1, 0.5, 0.3, 0.1, 0.001],
    )
    points = grid(policy=shapes, reference=shapes, samples=(1, 7, 64), seed=(0, 9999))
    hold(Maths(open_page, explorer), explorer, points, tolerance=1e-11)


def test_kl_agrees_with_a_slow_loop_and_with_theory() -> None:
    explorer = KLExplorer(policy=[0.5, 0.2, 0.1, 0.1, 0.1], reference=[0.1, 0.1, 0.2, 0.3, 0.3])
    found = explorer.frame(samples=512)
    p, q = found["policy"], found["reference"]
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert math.isclose(found["exact"], exact)
    assert abs(found["k1"]["bias"]) < 1e-15 > abs(found["k3"]["bias"]) / 10
    assert found["k2"]["bias"] != 0
    for kind in ("k1", "k3"):  # the mean over 200 · 512 draws, within 4 standard errors
        error = 4 * found[kind]["std"] / math.sqrt(200 * 512)
        assert abs(found[kind]["average"] - exact) < error
    assert np.allclose(found["k1"]["gradient"], 0, atol=1e-15)
    assert np.allclose(found["k3"]["gradient"], np.subtract(p, q))  # of KL(π_ref ‖ π)
    words = np.searchsorted(np.cumsum(p)[:-1], uniforms(0, 512), side="right")
    logp, logq = (torch.tensor(v, dtype=torch.float64).log()[words] for v in (p, q))
    assert math.isclose(found["k1"]["estimates"][0], float(kl_k1(logp, logq).mean()))
    assert math.isclose(found["k3"]["estimates"][0], float(kl_k3(logp, logq).mean()))


def test_dpo(open_page: OpenPage) -> None:
    explorer = DPOExplorer()
    nats = (-1e4, -60, -3, 0, 0.5, 40, 1e4)
    points = grid(beta=(0.001, 0.1, 0.37, 10), chosen=nats, rejected=nats, smoothing=(0, 0.1, 0.49))
    hold(Maths(open_page, explorer), explorer, points)


def test_dpo_at_the_start_counts_every_pair_one_half() -> None:
    found = DPOExplorer().frame(chosen=0, rejected=0)
    assert math.isclose(found["dpo"]["loss"], math.log(2))
    assert found["dpo"]["weight"] == 0.5
    assert math.isclose(found["ipo"]["weight"], 1)


def test_bradley_terry(open_page: OpenPage) -> None:
    explorer = BradleyTerryExplorer()
    scores = (-1e4, -710, -8, -0.5, 0, 3, 1e4)
    points = grid(chosen=scores, rejected=scores, margin=(0, 1.5, 100), smoothing=(0, 0.2, 0.49))
    hold(Maths(open_page, explorer), explorer, points)


def test_bradley_terry_knows_no_zero() -> None:
    explorer = BradleyTerryExplorer()
    assert explorer.frame(chosen=2, rejected=1) == explorer.frame(chosen=7, rejected=6)


def test_lora(open_page: OpenPage) -> None:
    explorer = LoRAExplorer()
    points = grid(model=SHAPES, targets=("few", "attention", "all"), rank=(1, 16, 257, 8192))
    points += grid(decay=(0, 0.55, 4), energy=(0.01, 0.9, 0.995, 1), rank=(1, 100))
    hold(Maths(open_page, explorer), explorer, points, tolerance=1e-10)


def test_lora_of_a_given_change_and_its_spectrum(open_page: OpenPage) -> None:
    delta = torch.randn(40, 3) @ torch.randn(3, 30)
    explorer = LoRAExplorer(delta)
    hold(
        Maths(open_page, explorer),
        explorer,
        grid(rank=(1, 2, 3, 64), energy=(0.5, 0.99)),
        tolerance=1e-9,
    )
    found = explorer.frame(rank=2)
    assert abs(found["kept"] - float(svd_energy(delta)[1])) < 1e-3
    assert found["directions"] == 30
    assert explorer.frame(energy=0.999)["enough"] == 3
    for bad in (
        torch.zeros(3, 3),
        torch.full((2, 2), math.nan),
        torch.ones(2, 2, 2),
        torch.ones(0),
    ):
        with pytest.raises(CourseError):
            LoRAExplorer(bad)


def test_lora_counts_by_hand() -> None:
    found = LoRAExplorer().frame(model="llama-7b", rank=8, targets="few")
    assert found["trained"] == 32 * 2 * 8 * (4096 + 4096)
    assert math.isclose(found["share"], found["trained"] / (6_738_415_616 + found["trained"]))


def test_nf4(open_page: OpenPage) -> None:
    explorer = NF4Explorer()
    maths = Maths(open_page, explorer, "LEVELS")
    for name, levels in maths.run("() => own.LEVELS").items():
        assert levels == code_book(name).levels.tolist()
    points = grid(
        kind=("normal", "heavy", "outliers", "uniform"),
        block=(1, 64, 100, 4096),
        format=("nf4", "fp4", "int4"),
        seed=(7,),
    )
    points += grid(
        block=(1024,), probe=np.linspace(-1, 1, 21).tolist(), format=("nf4", "fp4", "int4")
    )
    hold(maths, explorer, points)


def test_nf4_of_given_weights(open_page: OpenPage) -> None:
    weights = torch.randn(30, 30) * 0.03
    weights[0] = 0
    explorer = NF4Explorer(weights)
    hold(Maths(open_page, explorer), explorer, grid(block=(16, 30, 64), format=("nf4", "int4")))
    for bad in (torch.tensor([math.nan]), torch.tensor([]), torch.tensor([1, 2]), "weights"):
        with pytest.raises(CourseError):
            NF4Explorer(bad)


def test_nf4_has_the_least_error_on_normal_weights_and_int4_on_uniform_ones() -> None:
    explorer = NF4Explorer()
    for kind, best in (("normal", "nf4"), ("uniform", "int4")):
        rows = explorer.frame(kind=kind)["formats"]
        assert min(rows, key=lambda name: rows[name]["relative"]) == best
    large, small = (explorer.frame(kind="outliers", block=b)["formats"]["nf4"] for b in (1024, 64))
    assert explorer.frame(block=16)["formats"]["nf4"]["bits"] == 6
    assert large["relative"] > 1.2 * small["relative"]


def test_kl_control(open_page: OpenPage) -> None:
    explorer = KLControlExplorer()
    points = grid(
        beta=(1e-4, 0.05, 10), target=(0.1, 6, 200), samples=(1, 256, 4096), horizon=(1, 500),
        steps=(10, 200), seed=(0, 3),
    )  # fmt: skip
    points += grid(pull=(0.01, 20), speed=(0.01, 1), noise=(0, 1), steps=(800,))
    hold(Maths(open_page, explorer), explorer, points, tolerance=1e-9)


def test_the_controller_finds_the_target_and_a_fixed_beta_does_not() -> None:
    found = KLControlExplorer(noise=0, steps=800, target=4, pull=0.4, beta=0.03).frame()
    assert abs(found["final_kl"] / 4 - 1) < 0.02
    assert abs(found["final_beta"] / found["right_beta"] - 1) < 0.02
    assert found["final_fixed"] > 40


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXPLORERS)
def test_what_is_no_number_is_refused_on_both_sides(
    kind: type[Explorer], open_page: OpenPage
) -> None:
    explorer = kind()
    maths = Maths(open_page, explorer)
    cases: list[dict[str, Any]] = []
    for name, field in explorer.inputs.items():
        if field.kind == "number":
            wrong = [math.nan, math.inf, -math.inf, None, "1", True, field.high + 1, field.low - 1]
        elif field.kind == "choice":
            wrong = ["nonsense", None, math.nan]
        else:
            wrong = [[0.2] * 4, [0.2] * 4 + [math.nan], [1, 1, 1, 1, 0], None, 3]
        cases += [{name: value} for value in wrong]
    theirs = maths.at([explorer.chosen | case for case in cases])
    for case, answer in zip(cases, theirs, strict=True):
        assert list(answer) == ["refused"], case
        with pytest.raises(CourseError, match=next(iter(case))):
            explorer.frame(**case)
        with pytest.raises(CourseError):
            explorer.show(**case)
        with pytest.raises(CourseError):
            kind(**case)
    with pytest.raises(CourseError, match="has no input 'betta'"):
        explorer.frame(betta=1)


@pytest.mark.parametrize("kind", EXPLORERS)
def test_presets_are_inputs_that_exist(kind: type[Explorer]) -> None:
    explorer = kind()
    for preset in explorer.presets:
        assert explorer.frame(**preset.set)
        assert preset.note
    summary = explorer.summary()
    assert set(explorer.inputs) <= set(summary)
    assert explorer.show(**explorer.presets[0].set).summary() != {}
    assert "\n" not in explorer.line()
