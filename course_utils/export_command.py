"""`course export`: a saved policy or adapter for other programs, as GGUF or as one plain model.

course export runs/latest/models/dpo --to gguf --out dpo.gguf --type q8_0
course export runs/pirate --to transformers --out merged    # an adapter merged into its base
"""

import argparse
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError


def main(args: argparse.Namespace) -> int:
    """Reads `args.model` (directory), writes `args.out`; prints where."""
    from course_utils.publish import save_model
    from course_utils.training.trl_common import quiet_libraries

    if args.out.exists():
        raise CourseError(f"{args.out} already exists; choose another --out")
    with quiet_libraries(progress=False):
        model, tokenizer = load(args.model)
        if args.to == "gguf":
            from course_utils.gguf_export import export_gguf

            words = None if args.no_tokenizer else tokenizer
            out = export_gguf(model, words, args.out, args.type, name=args.model.resolve().name)
        else:
            out = save_model(args.out, model, tokenizer)
    size = sum(p.stat().st_size for p in ([out] if out.is_file() else out.rglob("*"))) / 1e6
    print(f"wrote {out} ({size:.1f} MB)")
    return 0


def load(directory: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a saved policy, or of a PEFT adapter merged into its base; weights in
    the type they were saved in.

    Raises: CourseError for a run (its models are named), no model, or a base that is not found.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (directory / "models").is_dir():
        found = sorted(p for p in (directory / "models").iterdir() if (p / "config.json").exists())
        raise CourseError(
            f"{directory} is a run; export one of its models: "
            f"{', '.join(map(str, found)) or 'it has none yet'}"
        )
    adapter = (directory / "adapter_config.json").is_file()
    if not adapter and not (directory / "config.json").is_file():
        raise CourseError(
            f"{directory} holds no saved model (no config.json); save_model writes one"
        )
    try:
        if adapter:
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(directory, dtype="auto")
            base = model.active_peft_config.base_model_name_or_path
            model = model.merge_and_unload()
        else:
            base, model = (
                directory,
                AutoModelForCausalLM.from_pretrained(directory, dtype="auto", use_safetensors=True),
            )
        own = (directory / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(directory if own else base)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "; is the base named in adapter_config.json still there?" if adapter else ""
        raise CourseError(f"{directory} cannot be read: {error}{fix}") from error
    return model.eval(), tokenizer
