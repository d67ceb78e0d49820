"""Exercise set 01, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_01 import (
    forgetting,
    houlsby_adapter,
    prefix_attention,
    trainable_parameters,
)

TASKS: tuple[Task, ...] = (
    houlsby_adapter.TASK,
    prefix_attention.TASK,
    trainable_parameters.TASK,
    forgetting.TASK,
)
