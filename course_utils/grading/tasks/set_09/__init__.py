"""Exercise set 09, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_09 import (
    code_reward,
    critique_revise,
    ensemble_reward,
    group_advantage,
)

TASKS: tuple[Task, ...] = (
    critique_revise.TASK,
    code_reward.TASK,
    group_advantage.TASK,
    ensemble_reward.TASK,
)
