"""Every task of the exercise sets: its checks, solution, alternatives and mutants, a file each."""

from course_utils.grading.tasks.masked_sft_loss import TASK as MASKED_SFT_LOSS

TASKS = (MASKED_SFT_LOSS,)
