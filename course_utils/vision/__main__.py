"""`python -m course_utils.vision --seeds 3`: hallucination before and after DPO, as a table."""

import argparse
import sys
from collections.abc import Sequence

from course_utils.errors import CourseError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course_utils.vision", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default 1)")
    parser.add_argument("--steps", type=int, default=300, help="of the captioner (default 300)")
    parser.add_argument("--dpo-steps", type=int, default=60, help="of DPO (default 60)")
    parser.add_argument(
        "--controls", action="store_true", help="also train DPO blind, and without the guard"
    )
    options = parser.parse_args(argv)
    from course_utils.vision.experiment import study, table

    try:
        if options.seeds < 1:
            raise CourseError(f"--seeds must be at least 1, got {options.seeds}")
        studies = []
        for seed in range(options.seeds):
            studies.append(study(seed, options.steps, options.dpo_steps, controls=options.controls))
            print(f"seed {seed}: {studies[-1].measured['DPO']}", file=sys.stderr, flush=True)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(studies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
