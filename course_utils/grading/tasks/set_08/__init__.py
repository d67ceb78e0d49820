"""Exercise set 08, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_08 import (
    best_of_n,
    effective_rank,
    expected_best_of_n,
    noisy_preference_loss,
    overoptimisation_peak,
)

TASKS: tuple[Task, ...] = (
    best_of_n.TASK,
    expected_best_of_n.TASK,
    overoptimisation_peak.TASK,
    noisy_preference_loss.TASK,
    effective_rank.TASK,
)
