"""Giving a trained model away: a directory that plain transformers loads, with a model card.

save_model("my-model", policy, tokenizer, card)      # weights, tokenizer, README.md
save_model("my-model", policy, tokenizer)            # without a card, as a run saves its models
push("my-model", "ada/my-first-dpo", token="hf_…")   # needs an account and a network
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import course_utils
from course_utils.errors import CourseError
from course_utils.files import atomic_dir

if TYPE_CHECKING:
    import pandas

TOKEN_PAGE = "https://huggingface.co/settings/tokens"


def model_card(
    name: str,
    base: str,
    method: str,
    data: str,
    intended: str,
    limits: Sequence[str],
    settings: Mapping[str, Any],
    results: "pandas.DataFrame",
    license: str = "apache-2.0",
) -> str:
    """A model card in Markdown with the Hub's header, after Mitchell et al. 2019.

    Args:
        base, method, data: what it was made of, how, and on which data.
        intended: what it is for. limits: what it must not be trusted with; at least one.
        settings: of the training. results: one row per model, as `Comparison.frame()` gives it.
    Raises: CourseError when limits are missing: every model has some.
    """
    if not limits:
        raise CourseError("a model card without limits is an advertisement: name at least one")
    header = {"license": license, "base_model": base, "library_name": "transformers"}
    lines = ["---", *(f"{key}: {_yaml(value)}" for key, value in header.items())]
    lines += ["tags:", *(f"- {_yaml(tag)}" for tag in ("course", method.lower())), "---", ""]
    lines += [f"# {name}", "", f"{base}, trained with {method} on {data}.", ""]
    lines += ["## Intended use", "", intended, "", "## Limits", ""]
    lines += [f"- {limit}" for limit in limits]
    lines += ["", "## Results", "", *_markdown(results), "", "## Training", ""]
    lines += ["| setting | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in settings.items()]
    return "\n".join([*lines, "", f"Made with course_utils {course_utils.__version__}.", ""])


def _yaml(value: str) -> str:
    """A string as a quoted YAML scalar: names may hold colons."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _markdown(results: "pandas.DataFrame") -> list[str]:
    rows = [
        f"| model | {' | '.join(map(str, results.columns))} |",
        "|---" * (len(results.columns) + 1) + "|",
    ]
    for name, row in results.iterrows():
        rows.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in row)} |")
    return rows


def save_model(directory: Path | str, model: Any, tokenizer: Any, card: str | None = None) -> Path:
    """Writes weights (safetensors), config, tokenizer and the card: the whole directory or nothing.

    A PEFT model leaves its adapter alone, a few MB: the base is named in it.
    Args: card: Markdown, see `model_card`; None writes none (`push` asks for one).
    """
    from course_utils.training.trl_common import quiet_libraries

    directory = Path(directory)
    with atomic_dir(directory) as temporary, quiet_libraries(progress=False):
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        _stop_at_the_tokenizers_end(temporary, tokenizer)
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
    return directory


def _stop_at_the_tokenizers_end(directory: Path, tokenizer: Any) -> None:
    """Makes plain `model.generate` stop where the tokenizer's answers end.

    A base model that was given a chat template keeps its own end of text in its configuration, and
    would write on past <|im_end|>. The model's own ends still count.
    """
    path = directory / "generation_config.json"
    if tokenizer.eos_token_id is None or not path.exists():  # an adapter alone has no such file
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    own = config.get("eos_token_id")
    own = own if isinstance(own, list) else [own]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *(end for end in own if end is not None)]))
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if tokenizer.pad_token_id is not None:
        config["pad_token_id"] = tokenizer.pad_token_id
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def push(
    directory: Path | str,
    repository: str,
    token: str | None = None,
    private: bool = True,
    endpoint: str | None = None,
) -> str:
    """Uploads a saved model to the Hugging Face Hub; returns its address.

    Args:
        repository: "user/name". token: None takes HF_TOKEN or the one of `hf auth login`.
        private: only you see it, until you change that on its page.
        endpoint: another Hub; None: huggingface.co.
    Raises: CourseError for a directory that is no saved model, no token, or what the Hub refused.
    """
    directory = Path(directory)
    if not (directory / "README.md").exists() or not any(directory.glob("*.safetensors")):
        raise CourseError(f"{directory} is not a saved model with a card: use save_model first")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise CourseError(f'"{repository}" must be "user/name", such as "ada/my-first-dpo"')
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    token = token or os.environ.get("HF_TOKEN") or get_token()
    if not token:
        raise CourseError(
            f"no token: make one with write access at {TOKEN_PAGE}, then pass token=… or set "
            "HF_TOKEN (on Colab: the key symbol on the left). Never write it into a notebook."
        )
    hub = HfApi(endpoint=endpoint, token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="A model and its card"
        )
    except HFValidationError as error:
        raise CourseError(f'"{repository}" cannot name a repository: {error}') from error
    except (HfHubHTTPError, OSError) as error:
        raise CourseError(f"the Hub did not take {directory}: {error}") from error
    return f"{hub.endpoint}/{repository}"
