"""Exercise set 02, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_02 import masked_sft_loss

TASKS: tuple[Task, ...] = (masked_sft_loss.TASK,)
