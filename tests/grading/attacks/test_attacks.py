"""Every hostile submission gets 0 points and a reason; an honest neighbour gets all of them.

The honest one is graded right after each attack, in the same sandbox. An attack that asserts
inside what it could not do (read, connect, mount …) fails the test by its message if it could.
"""

import json
import re
import threading
from pathlib import Path

import pytest

from course_utils.grading import checks
from course_utils.grading.call import LocalCall
from course_utils.grading.mutants import answers, mutated
from course_utils.grading.notebook import parse

from . import submissions

TASK = checks.find("02", "masked-sft-loss")
ANSWERS = answers(Path(__file__).parents[3], TASK)


def grade(box, source, seed=0):
    """Points and messages of one submission, through notebook, sandbox, pipe and checks."""
    cell = {"cell_type": "code", "metadata": {}, "source": source}
    book = parse(json.dumps({"nbformat": 4, "cells": [cell]}).encode())
    pieces, _ = book.needed(TASK.functions)
    hidden = [p for p in book.pieces if p not in pieces]  # class bodies that attack: run them too
    with box.task([*hidden, *pieces]) as session:
        results = checks.run_task(TASK, session.call(TASK.functions), [(seed, 2)])
    points = sum(r.points for r in results)
    return points, [f.text() for r in results for f in r.findings]


@pytest.mark.parametrize("name", submissions.ATTACKS)
def test_an_attack_earns_nothing_and_harms_nobody(box, name):
    source, reason = submissions.ATTACKS[name]
    points, messages = grade(box, source)
    assert points == 0
    assert messages
    for message in messages:
        assert "AssertionError" not in message
        assert len(message) < 1000
    if reason:
        assert re.search(reason, " ".join(messages)), messages
    assert grade(box, ANSWERS.solution, seed=1) == (TASK.points, [])


def test_files_of_the_grader_and_of_others_cannot_be_read(box, tmp_path):
    secret = tmp_path / "other.ipynb"
    secret.write_text("another student's work")
    tmp_path.chmod(0o755)
    secret.chmod(0o644)
    for place in (secret, Path(checks.__file__), Path(__file__)):
        points, messages = grade(
            box, submissions.does(f"SECRET = {str(place)!r}\n{submissions.READ}")
        )
        assert points == 0
        assert submissions.RAN in " ".join(messages)


def test_what_one_submission_leaves_the_next_does_not_see(box):
    plant = "open('/tmp/mine', 'w').write('x'); torch.planted = 1; sys.modules['evil'] = torch"
    grade(box, submissions.does(plant))
    look = (
        "assert os.listdir('/tmp') == [] and not hasattr(torch, 'planted')\n"
        "assert 'evil' not in sys.modules"
    )
    assert submissions.RAN in " ".join(grade(box, submissions.does(look))[1])


def test_a_neighbour_beside_an_attack_gets_full_points(box, another_box):
    attacks = ("fork bomb", "memory bomb", "kill everything", "disk", "thread bomb")
    todo = [submissions.ATTACKS[name][0] for name in attacks]
    attacker = threading.Thread(target=lambda: [grade(another_box, source) for source in todo])
    attacker.start()
    scores = [grade(box, ANSWERS.solution, seed)[0] for seed in range(6)]
    attacker.join()
    assert scores == [TASK.points] * 6


def test_right_solutions_written_differently_get_full_points(box):
    for seed, source in enumerate((ANSWERS.solution, *ANSWERS.alternatives)):
        assert grade(box, source, seed) == (TASK.points, [])


def test_mutants_get_the_same_findings_through_the_pipe(box):
    for mutant in ANSWERS.mutants:
        here = [
            f.text()
            for r in checks.run_task(TASK, local(mutated(TASK, ANSWERS.solution, mutant)), [(0, 2)])
            for f in r.findings
        ]
        points, messages = grade(box, mutated(TASK, ANSWERS.solution, mutant))
        assert points < TASK.points
        assert [m.split("(")[0] for m in messages] == [m.split("(")[0] for m in here]


def local(source):
    namespace = {}
    exec(source, namespace)
    return LocalCall([namespace[name] for name in TASK.functions])
