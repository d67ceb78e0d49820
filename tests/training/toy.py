"""Toy data and models for the trainers' tests, also for the script that gets killed."""

import hashlib
import importlib.util
import random
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "toy_conftest", Path(__file__).parents[1] / "conftest.py"
)
_conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_conftest)
build_tokenizer, build_model, WORDS = (
    _conftest.build_tokenizer,
    _conftest.build_model,
    _conftest.WORDS,
)


def text(rng, low, high):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def user(content):
    return [{"role": "user", "content": content}]


def assistant(content):
    return [{"role": "assistant", "content": content}]


def demonstrations(n=48, seed=0, standard=False):
    """Answers start with "the moon is" and then differ."""
    from datasets import Dataset

    rng = random.Random(seed)
    pairs = [(text(rng, 2, 9), "the moon is " + text(rng, 1, 6)) for _ in range(n)]
    if standard:
        return Dataset.from_list([{"prompt": p + " ", "completion": c} for p, c in pairs])
    return Dataset.from_list([{"prompt": user(p), "completion": assistant(c)} for p, c in pairs])


def preferences(n=48, seed=0, standard=False):
    """The preferred answer has "great" in it where the other has "bad"."""
    from datasets import Dataset

    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        prompt, left, right = text(rng, 2, 9), text(rng, 0, 3), text(rng, 0, 3)
        chosen, rejected = f"{left} great {right}".strip(), f"{right} bad {left}".strip()
        if standard:
            rows.append({"prompt": prompt + " ", "chosen": chosen, "rejected": rejected})
        else:
            sides = {"chosen": assistant(chosen), "rejected": assistant(rejected)}
            rows.append({"prompt": user(prompt), **sides})
    return Dataset.from_list(rows)


def digest(model):
    """SHA-256 of all weights, bit for bit."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


SHORT = {"steps": 14, "batch_size": 4, "save_every": 5, "learning_rate": 5e-3}


def train(stage, directory, resume=False, **changes):
    """One short training of a stage into a run directory; returns (model, log)."""
    from course_utils.training.run import RunLog

    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    log = RunLog.create(directory, {"stage": stage}, seed=0, resume=resume)
    options = {"log": log, "resume": resume, "progress": False}
    settings = {**SHORT, **changes}
    if stage == "sft":
        from course_utils.training.sft import SFTSettings, train_sft

        data = demonstrations(22)  # more than two passes over the data
        return train_sft(model, tokenizer, data, SFTSettings(**settings), **options), log
    data = preferences(22)
    if stage == "reward":
        from course_utils.training.reward import RewardSettings, train_reward_model

        reward = train_reward_model(model, tokenizer, data, RewardSettings(**settings), **options)
        return reward.model, log
    from course_utils.training.dpo import DPOSettings, train_dpo

    if stage == "dpo-lora":
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    return train_dpo(model, tokenizer, data, DPOSettings(**settings), **options), log
