"""Exercise set 06, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_06 import (
    energy_rank,
    lora_count,
    lora_linear,
    lora_merge,
    ties_merge,
)

TASKS: tuple[Task, ...] = (
    lora_linear.TASK,
    lora_merge.TASK,
    lora_count.TASK,
    energy_rank.TASK,
    ties_merge.TASK,
)
