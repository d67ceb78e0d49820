"""Exercise set 02, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_02 import (
    broken_collator,
    completion_mask,
    masked_sft_loss,
    packing,
)

TASKS: tuple[Task, ...] = (
    completion_mask.TASK,
    masked_sft_loss.TASK,
    packing.TASK,
    broken_collator.TASK,
)
