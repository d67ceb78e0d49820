"""Breaks each of the thirty points on purpose and sees that a test fails: the tests' own test.

    python tests/ppo/mutants.py            all
    python tests/ppo/mutants.py 8 24       some points

Works on a copy of the package in a temporary directory; the tree itself is not touched.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PPO = "course_utils/training/ppo/"
OBJECTIVES = "course_utils/objectives/"

# (point, what goes wrong, file, what stands there, what the mutant has instead)
MUTANTS: list[tuple[int, str, str, str, str]] = [
    (
        *(1, "the KL is left out of the reward", PPO + "advantages.py"),
        "rollouts.ref_logprobs, scores, mask, beta)",
        "rollouts.ref_logprobs, scores, mask, 0.0)",
    ),
    (
        *(2, "the KL is measured in the other direction", PPO + "advantages.py"),
        "kl_estimate(rollouts.logprobs, rollouts.ref_logprobs, kind",
        "kl_estimate(rollouts.ref_logprobs, rollouts.logprobs, kind",
    ),
    (
        *(3, "k3 in the reward instead of k1", OBJECTIVES + "policy_gradient.py"),
        "return (-beta * kl)",
        "return (-beta * (torch.expm1(-kl) + kl))",
    ),
    (
        *(
            4,
            "log-probabilities of another distribution than was sampled",
            "course_utils/generation.py",
        ),
        "cumulative = logprobs.exp().cumsum",
        "cumulative = (1.5 * logprobs).exp().cumsum",
    ),
    (
        *(5, "the tail is cut off (top-p) before sampling", "course_utils/generation.py"),
        "cumulative = logprobs.exp().cumsum",
        "cumulative = (logprobs.exp() * (logprobs > -5)).cumsum",
    ),
    (
        *(6, "the reference is not divided by the temperature", PPO + "rollout.py"),
        "token_logprobs(parts.logits(h), t, config.temperature)",
        "token_logprobs(parts.logits(h), t, 1.0)",
    ),
    (
        *(7, "dropout stays on", PPO + "trainer.py"),
        "self.policy = policy.eval()",
        "self.policy = policy",
    ),
    (
        *(8, "logits are read one position late", PPO + "sequences.py"),
        "first = (self.prompt_lengths - 1).unsqueeze(1)",
        "first = self.prompt_lengths.unsqueeze(1)",
    ),
    (
        *(9, "positions count the padding", "course_utils/models.py"),
        "return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)",
        "return torch.ones_like(attention_mask).long().cumsum(dim=1) - 1",
    ),
    (
        *(10, "the mask is `id != pad`", "course_utils/generation.py"),
        "real = completion_mask_from_eos(ids, eos_token_ids)",
        "real = ids != pad_token_id",
    ),
    (
        *(11, "a pad that equals EOS hides the EOS", "course_utils/generation.py"),
        "logprobs=logprobs.masked_fill(~real, 0.0)",
        "logprobs=logprobs.masked_fill(~real | (ids == pad_token_id), 0.0)",
    ),
    (
        *(12, "the score goes on the last column", OBJECTIVES + "policy_gradient.py"),
        "last = last_token_index(mask).unsqueeze(1)",
        "last = last_token_index(torch.ones_like(mask)).unsqueeze(1)",
    ),
    (
        *(13, "cut answers are not penalised", PPO + "advantages.py"),
        "return scores - penalty * (~ended).to(scores.dtype)",
        "return scores",
    ),
    (
        *(14, "cut answers are taken for finished", PPO + "advantages.py"),
        "config.lam, rollouts.last_values",
        "config.lam, None",
    ),
    (
        *(15, "the reward model reads cut answers without EOS", PPO + "rewards.py"),
        "lengths = lengths + cut.long()",
        "pass",
    ),
    (
        *(16, "returns are taken after whitening", PPO + "advantages.py"),
        "    rollouts.rewards, rollouts.advantages",
        "    returns = advantages + rollouts.values\n    rollouts.rewards, rollouts.advantages",
    ),
    (
        *(17, "whitening counts the padding", PPO + "advantages.py"),
        "advantages = masked_whiten(advantages, mask)",
        "advantages = masked_whiten(advantages, torch.ones_like(mask)) * mask",
    ),
    (
        *(18, "whitened rewards lose their mean", PPO + "advantages.py"),
        "shift_mean=False",
        "shift_mean=True",
    ),
    (
        *(
            19,
            "the reward model's scores are not normalised",
            "course_utils/training/reward_model.py",
        ),
        "scores = self.normalisation.apply(self.raw_scores(input_ids, attention_mask))",
        "scores = self.raw_scores(input_ids, attention_mask)",
    ),
    (
        *(20, "the value clip compares with recomputed values", PPO + "update.py"),
        "rollouts.values[rows, :width],",
        "spread(scored.values, mask).detach(),",
    ),
    (
        *(21, "the value head starts at random", "course_utils/models.py"),
        "nn.init.zeros_(self.value_head.weight)",
        "nn.init.normal_(self.value_head.weight)",
    ),
    (
        *(22, "the log-ratio is not clamped", OBJECTIVES + "policy_gradient.py"),
        "return difference.clamp(-limit, limit)",
        "return difference",
    ),
    (
        *(22, "a policy that has moved too far is updated further", PPO + "update.py"),
        'if limit is not None and stats["approx_kl"] > limit:',
        "if False:",
    ),
    (
        *(23, "the controller counts steps instead of answers", PPO + "trainer.py"),
        'self.kl_control.update(row["kl"], len(rollouts))',
        'self.kl_control.update(row["kl"], 1)',
    ),
    (
        *(24, "each micro-batch divides by its own tokens", PPO + "update.py"),
        "loss, stats = self._loss(rollouts, part, tokens)",
        "loss, stats = self._loss(rollouts, part, int(rollouts.mask[part].sum()))",
    ),
    (
        *(25, "gradients pile up from update to update", PPO + "update.py"),
        "self.optimizer.zero_grad(set_to_none=True)\n        stats = self._gradients",
        "stats = self._gradients",
    ),
    (
        *(26, "gradients are measured but not clipped", PPO + "update.py"),
        "if norm > self.config.max_grad_norm:",
        "if norm < 0:",
    ),
    (
        *(27, "Adam's epsilon is torch's default", PPO + "update.py"),
        "            eps=config.adam_eps,\n",
        "",
    ),
    (
        *(28, "captured log-probabilities in bf16", PPO + "config.py"),
        'self.old_logprobs == "auto" and self.precision != "fp32"',
        'self.old_logprobs == "auto" and False',
    ),
    (
        *(29, "the reference is the policy itself", "course_utils/models.py"),
        'self.kind, self._model = "copy", reference_of(policy)',
        'self.kind, self._model = "copy", policy',
    ),
    (
        *(29, "adapter off, although the adapter was not fresh", "course_utils/models.py"),
        'self.kind = "adapter off" if _adapter_is_fresh(policy) else "adapter as it was"',
        'self.kind = "adapter off"',
    ),
    (
        *(30, "something else than the learning rate moves the policy", PPO + "update.py"),
        'group["lr"] = self.learning_rate(step) * group["factor"]',
        'group["lr"] = self.learning_rate(step) + 1e-3',
    ),
]
TESTS = (
    *("tests/ppo/test_ppo_points.py", "tests/ppo/test_ppo_update.py"),
    "tests/ppo/test_ppo_adapters.py",
    *("tests/test_generation.py", "tests/objectives"),
)


def run(tree: Path) -> tuple[int, str]:
    """pytest in a forked child, which imports the copy; torch is already loaded."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        import pytest

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *TESTS])
        sys.stdout.flush()
        os._exit(int(code))
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        output = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def main(points: list[int]) -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    import peft  # noqa: F401  (loaded once here instead of in every child)
    import transformers  # noqa: F401

    chosen = [mutant for mutant in MUTANTS if not points or mutant[0] in points]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("course_utils", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        sys.dont_write_bytecode = True
        for point, _, file, old, _ in chosen:
            if (tree / file).read_text(encoding="utf-8").count(old) != 1:
                raise SystemExit(f"point {point}: {file} no longer holds {old!r} once")
        for point, wrong, file, old, new in chosen:
            source = (tree / file).read_text(encoding="utf-8")
            (tree / file).write_text(source.replace(old, new), encoding="utf-8")
            code, output = run(tree)
            (tree / file).write_text(source, encoding="utf-8")
            failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
            verdict = failed[0].split(" - ")[0] if code == 1 and failed else "SURVIVED"
            survivors += verdict == "SURVIVED"
            print(f"{point:2d}  {wrong}: {verdict}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main([int(argument) for argument in sys.argv[1:]]))
