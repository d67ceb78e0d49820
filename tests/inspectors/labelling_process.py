"""A kernel for test_labeller_kill.py to kill: writes the labels that come on stdin, and says so.

argv: the labels' path. One line in: a message of the browser. One line out: the log it may see.
"""

import json
import sys

from course_utils.inspectors.labeller import PreferenceLabeller

PAIRS = [(f"ask {i}", f"one {i} " + "x" * (i * 37 % 500), f"other {i}") for i in range(2000)]

if __name__ == "__main__":
    labeller = PreferenceLabeller(PAIRS, sys.argv[1])
    log = labeller.state["log"]
    print(json.dumps({"log": log}), flush=True)
    for line in sys.stdin:
        labeller.received(json.loads(line))
        print(json.dumps({"log": labeller._state["log"][len(log) :]}), flush=True)
        log = list(labeller._state["log"])
