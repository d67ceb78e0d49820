"""Exercise set 03, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_03 import (
    accuracy_and_calibration,
    bradley_terry_loss,
    last_token_score,
    length_bias,
    reward_normalisation,
)

TASKS: tuple[Task, ...] = (
    bradley_terry_loss.TASK,
    last_token_score.TASK,
    reward_normalisation.TASK,
    accuracy_and_calibration.TASK,
    length_bias.TASK,
)
