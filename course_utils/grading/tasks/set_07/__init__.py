"""Exercise set 07, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task
from course_utils.grading.tasks.set_07 import (
    blockwise_quantization,
    double_quantization,
    merge_error,
    normal_float,
    recipe_memory,
)

TASKS: tuple[Task, ...] = (
    normal_float.TASK,
    blockwise_quantization.TASK,
    double_quantization.TASK,
    recipe_memory.TASK,
    merge_error.TASK,
)
