"""Grading code that nobody has read: what a notebook says, run in a sandbox, judged outside of it.

    notebook   an untrusted .ipynb -> imports, definitions and literals (never executed here)
    protocol   frames on a pipe: a JSON head and a safetensors body, limits and deadlines
    worker     runs inside the sandbox: torch is imported once, then a fork for each task
    sandbox    starts the worker where it can reach nothing, and ends it on time
    call       a student's function as the checks see it: in this process or through the pipe
    checks     the registry of tasks and points; runs a task's checks and collects findings
    mutants    wrong solutions that the checks must name, right ones that they must pass

The rule that all of it serves: a reply from the sandbox can earn points only by being right.
Inputs are fresh, reference values never enter the sandbox, comparisons happen in the grader.
"""
