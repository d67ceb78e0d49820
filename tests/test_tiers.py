"""The dial: every kind of machine gets the tier, precision and reason that were promised."""

import dataclasses

import pytest

from course_utils.errors import TierError
from course_utils.hardware import Gpu, Hardware, cpu_quota, has_kernels, memory_limit, where
from course_utils.tiers import TIERS, choose_tier, get_tier

T4 = Gpu("Tesla T4", 14.56, (7, 5), bf16_native=False)
L4 = Gpu("NVIDIA L4", 22.03, (8, 9), bf16_native=True)
H100 = Gpu("NVIDIA H100 80GB HBM3", 79.2, (9, 0), bf16_native=True)
GTX = Gpu("NVIDIA GeForce GTX 1650", 3.8, (7, 5), bf16_native=False)
P100 = Gpu("Tesla P100-PCIE-16GB", 15.9, (6, 0), bf16_native=False, supported=False)


def machine(*gpus: Gpu, **changes) -> Hardware:
    return Hardware(**{"cpus": 2, "ram_gib": 12.7, "gpus": gpus, **changes})


def test_the_t4_gets_fp16_autocast_and_says_so() -> None:
    choice = choose_tier(None, machine(T4, platform="colab"), environ={})
    assert choice.reason == (
        "T4: no native bf16, so fp16 autocast over fp32 weights; 14.6 GiB; tier small"
    )
    assert (choice.tier.name, choice.precision, choice.device) == ("small", "fp16", "cuda")
    assert choice.fp16
    assert not choice.bf16  # TRL would turn it on by itself
    assert choice.warnings == ()


@pytest.mark.parametrize(
    ("gpus", "tier", "precision", "device"),
    [
        ((), "tiny", "fp32", "cpu"),
        ((T4,), "small", "fp16", "cuda"),
        ((L4,), "medium", "bf16", "cuda"),
        ((H100,), "medium", "bf16", "cuda"),  # large is only taken when asked for
        ((GTX,), "tiny", "fp32", "cuda"),
        ((P100,), "tiny", "fp32", "cpu"),  # this torch has no kernels for it
        ((T4, L4), "medium", "bf16", "cuda:1"),
    ],
)
def test_automatic_choice(gpus, tier, precision, device) -> None:
    choice = choose_tier(None, machine(*gpus), environ={})
    assert (choice.tier.name, choice.precision, choice.device) == (tier, precision, device)
    assert f"tier {tier}" in choice.reason


def test_the_argument_goes_before_the_variable_and_the_variable_before_the_hardware() -> None:
    environ = {"COURSE_TIER": "tiny"}
    from_variable = choose_tier(None, machine(T4), environ)
    assert from_variable.tier.name == "tiny"
    assert "COURSE_TIER" in from_variable.reason
    assert choose_tier("small", machine(T4), environ).tier.name == "small"
    assert choose_tier(" Small ", machine(T4), environ).tier.name == "small"
    assert choose_tier("", machine(T4), {"COURSE_TIER": ""}).tier.name == "small"


def test_an_unknown_tier_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(TierError) as caught:
        choose_tier("medum", machine(), environ={})
    message = str(caught.value)
    assert 'did you mean "medium"?' in message
    assert all(name in message for name in TIERS)
    with pytest.raises(TierError, match="COURSE_TIER") as caught:
        choose_tier(None, machine(), environ={"COURSE_TIER": "xyzzy"})
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hardware", "said"),
    [
        ("medium", machine(T4), "native bf16"),
        ("medium", machine(), "no GPU"),
        ("large", machine(L4), "38 GiB"),
        ("large", machine(P100), "P100"),
        ("small", machine(ram_gib=3.0), "3.0 GiB"),
    ],
)
def test_a_tier_too_big_is_refused_with_what_is_here_and_what_would_run(
    name, hardware, said
) -> None:
    with pytest.raises(TierError) as caught:
        choose_tier(name, hardware, environ={})
    message = str(caught.value)
    assert said in message
    fallback = choose_tier(None, hardware, environ={}).tier.name
    assert f"--tier {fallback}" in message


def test_small_on_a_cpu_works_but_warns() -> None:
    for hardware in (machine(), machine(GTX)):
        choice = choose_tier("small", hardware, environ={})
        assert (choice.device, choice.precision) == ("cpu", "fp32")
        assert "hours" in choice.warnings[0]
    assert choose_tier("tiny", machine(), environ={}).warnings == ()


def test_apple_gpu_is_used_for_small_only() -> None:
    mac = machine(mps=True, ram_gib=16.0)
    assert choose_tier(None, mac, environ={}).device == "cpu"
    assert choose_tier("small", mac, environ={}).device == "mps"


def test_a_machine_cut_off_from_the_hub_stays_on_the_shipped_model() -> None:
    choice = choose_tier(None, machine(L4), environ={"HF_HUB_OFFLINE": "1"})
    assert choice.tier.name == "tiny"
    assert "Hub is switched off" in choice.reason
    assert choose_tier(None, machine(L4), environ={"HF_HUB_OFFLINE": "0"}).tier.name == "medium"
    asked = {"HF_HUB_OFFLINE": "1", "COURSE_TIER": "medium"}
    assert choose_tier(None, machine(L4), asked).tier.name == "medium"


def test_fast_changes_how_long_but_not_how() -> None:
    for tier in TIERS.values():
        fast = choose_tier(tier.name, machine(H100), {"COURSE_FAST": "1"}).tier
        assert fast.is_fast
        assert fast.sft.steps <= 3 < tier.sft.steps
        assert fast.ppo.iterations <= 3 < tier.ppo.iterations
        same = dataclasses.replace(
            fast,
            **{
                name: getattr(tier, name)
                for name in ("demonstrations", "preference_pairs", "evaluation_prompts", "is_fast")
            },
            sft=dataclasses.replace(fast.sft, steps=tier.sft.steps),
            reward=dataclasses.replace(fast.reward, steps=tier.reward.steps),
            dpo=dataclasses.replace(fast.dpo, steps=tier.dpo.steps),
            ppo=dataclasses.replace(
                fast.ppo,
                iterations=tier.ppo.iterations,
                low_beta_iterations=tier.ppo.low_beta_iterations,
            ),
        )
        assert same == tier  # models, batch sizes, rates and lengths stay
    assert "COURSE_FAST" in choose_tier("tiny", machine(), {"COURSE_FAST": "1"}).reason
    assert not choose_tier("tiny", machine(), {"COURSE_FAST": "0"}).tier.is_fast


@pytest.mark.parametrize("tier", TIERS.values(), ids=list(TIERS))
def test_every_row_is_consistent(tier) -> None:
    assert get_tier(tier.name) is tier
    assert tier.ppo.rollouts % tier.ppo.minibatch == 0
    assert tier.dpo.beta > 0
    assert tier.ppo.max_prompt + tier.ppo.max_new_tokens <= tier.sft.max_length
    assert tier.needs_hub == ("/" in tier.policy) == (tier.policy != "world")
    with pytest.raises(dataclasses.FrozenInstanceError):
        tier.name = "other"


def test_kernels_follow_cuda_compatibility() -> None:
    build = ["sm_75", "sm_80", "sm_86", "sm_90"]
    assert has_kernels((7, 5), build)
    assert has_kernels((8, 9), build)  # runs sm_86 code
    assert not has_kernels((8, 0), ["sm_86"])  # but not the other way round
    assert not has_kernels((6, 0), build)
    assert not has_kernels((10, 0), build)
    assert has_kernels((10, 0), [*build, "compute_90"])  # PTX is compiled for newer devices
    assert not has_kernels((9, 0), ["sm_100a"])


def test_container_limits_are_read(tmp_path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert cpu_quota(tmp_path) == 1.5
    assert memory_limit(tmp_path) == 2 * 2**30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None


def test_where() -> None:
    assert where({"COLAB_RELEASE_TAG": "x"}) == "colab"
    assert where({"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "COLAB_GPU": "1"}) == "kaggle"
    assert where({}) == "local"
