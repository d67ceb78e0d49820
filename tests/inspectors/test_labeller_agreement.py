"""Agreement of two judges, against numbers from the literature and a loop."""

import math
import random

import pytest

from course_utils.evaluation.agreement import agreement, cohens_kappa, wilson


def test_wilson_is_the_root_of_its_equation() -> None:
    for k, n in ((8, 10), (1, 3), (40, 41), (500, 1000)):
        for bound in wilson(k, n):  # |p - k/n| = z sqrt(p (1 - p) / n)
            assert abs(bound - k / n) == pytest.approx(
                1.959963985 * math.sqrt(bound * (1 - bound) / n), rel=1e-6
            )
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_kappa_of_a_table_worked_out_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(a, b) == pytest.approx(0.4)
    assert cohens_kappa(a, a) == 1
    assert cohens_kappa("xyz", "yzx") == pytest.approx(-0.5)
    assert math.isnan(cohens_kappa(["y"], ["y"]))
    assert math.isnan(cohens_kappa([], []))


def test_agreement_leaves_out_what_one_did_not_decide() -> None:
    found = agreement(["l", "r", None, "l", "r"], ["l", "l", "r", None, "r"])
    assert (found.n, found.left_out, found.share) == (3, 2, pytest.approx(2 / 3))
    assert (found.low, found.high) == wilson(2, 3)
    assert "67%" in str(found)
    nothing = agreement([None], ["l"])
    assert nothing.n == 0
    assert str(nothing) == "no case that both have decided"
    assert nothing.to_json()["kappa"] is None


def test_the_bootstrap_interval_of_kappa_holds_the_value_about_19_times_in_20() -> None:
    # Judges that agree on 80% with even odds: kappa 0.6.
    rng = random.Random(0)
    hits = 0
    for trial in range(30):
        a = [rng.choice("lr") for _ in range(80)]
        b = [x if rng.random() < 0.8 else {"l": "r", "r": "l"}[x] for x in a]
        found = agreement(a, b, seed=trial)
        assert found.kappa_low <= found.kappa <= found.kappa_high
        hits += found.kappa_low <= 0.6 <= found.kappa_high
    assert hits >= 26
