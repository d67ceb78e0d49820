"""Exercise set 04, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_04 import (
    adaptive_kl,
    clipped_loss,
    diagnose,
    gae,
    kl_estimate,
    token_rewards,
)

TASKS: tuple[Task, ...] = (
    kl_estimate.TASK,
    token_rewards.TASK,
    gae.TASK,
    clipped_loss.TASK,
    adaptive_kl.TASK,
    diagnose.TASK,
)
