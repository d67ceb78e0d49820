"""Exercise set 07, a file for each task, in the notebook's order."""

from course_utils.grading.checks import Task

TASKS: tuple[Task, ...] = ()
