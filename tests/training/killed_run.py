"""Trains the given stages, each in a process of its own that kills itself with SIGKILL.

    python killed_run.py DIRECTORY STEP STAGE...

Imports once, then forks: no tensor has been computed yet, so no thread pool exists.
"""

import gc
import os
import signal
import sys

import torch
import toy
from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401  (slow: once for all stages)

from course_utils.training.run import RunLog


def die_at(step):
    append = RunLog.append

    def append_and_die(log, row):
        append(log, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    RunLog.append = append_and_die


def main():
    directory, step, stages = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    gc.freeze()
    for stage in stages:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            die_at(step)
            toy.train(stage, f"{directory}/{stage}")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(stage, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
