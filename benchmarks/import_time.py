"""Prints how long `import course_utils` and `course --help` take in a fresh interpreter.

    python benchmarks/import_time.py [--runs N]

Each number is the median over N fresh processes (default 7), less the interpreter's own start-up
(`python -c pass`).
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import course_utils": ["-c", "import course_utils"],
    "course --help": ["-m", "course_utils", "--help"],
    "import torch (to compare)": ["-c", "import torch"],
}


def median_seconds(arguments: list[str], runs: int) -> float:
    """Median wall-clock seconds of a fresh interpreter with these arguments."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    start = median_seconds(["-c", "pass"], runs)
    for name, arguments in COMMANDS.items():
        print(f"{name:28s} {median_seconds(arguments, runs) - start:7.3f} s")


if __name__ == "__main__":
    main()
