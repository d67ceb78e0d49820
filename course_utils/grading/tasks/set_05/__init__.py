"""Exercise set 05, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_05 import (
    cdpo_loss,
    dpo_loss,
    gradient_weight,
    implicit_reward,
    ipo_loss,
    sequence_logprobs,
)

TASKS: tuple[Task, ...] = (
    sequence_logprobs.TASK,
    dpo_loss.TASK,
    implicit_reward.TASK,
    gradient_weight.TASK,
    ipo_loss.TASK,
    cdpo_loss.TASK,
)
