"""`course run`: base -> SFT -> reward model -> PPO and DPO -> evaluation -> report, on any tier.

job.py      what was asked for, and the run directory that remembers it
inputs.py   the data of each stage: the world's, or the user's own files
stages.py   one function a stage: train, save, keep what it cost
measure.py  evaluation of every model and the contents of report.json
"""

import argparse


def main(args: argparse.Namespace) -> int:
    """Runs the job of parsed `course run` arguments; returns the exit code."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()  # ours are the stages' own
    logging.disable_progress_bar()

    from course_utils.pipeline.job import claim, open_job
    from course_utils.pipeline.measure import finish
    from course_utils.pipeline.stages import Pipeline

    job = open_job(args)
    pipeline = Pipeline(job)
    pipeline.inputs.read_files()
    claim(job)
    pipeline.run()
    finish(pipeline)
    return 0
