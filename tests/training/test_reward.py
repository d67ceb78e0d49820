"""Reward models: the right loss, the right token, the same text at inference as in training."""

import json
import math

import pytest
import torch

from course_utils.errors import CourseError, WeightsError
from course_utils.objectives.preference import bradley_terry_loss
from course_utils.training.reward import (
    RewardModel,
    RewardSettings,
    train_reward_model,
    with_distinct_pad,
)
from course_utils.training.reward_model import pad_right, sequence_classifier
from course_utils.training.run import RunLog
from course_utils.training.tokenise import comparison_rows
from course_utils.training.trl_data import Data, needed

QUICK = {"progress": False}


@pytest.fixture
def log(tmp_path):
    return RunLog.create(tmp_path / "run", {}, seed=0)


@pytest.fixture
def reward(tiny_model, tiny_tokenizer):
    """An untrained one with scores that differ visibly."""
    made = RewardModel(sequence_classifier(tiny_model, seed=1), tiny_tokenizer)
    with torch.no_grad():
        made.head.weight.mul_(50)
    return made


PROMPTS = ["hello", "explain the moon landing to a 6 year old", "why ?"]
ANSWERS = ["great", "no it is not good", "yes yes yes yes yes yes"]


# ---- training --------------------------------------------------------------------------------


def test_learns_preferences_and_leaves_the_policy_alone(toy, tiny_model, tiny_tokenizer, log):
    before = toy.digest(tiny_model)
    settings = RewardSettings(steps=25, batch_size=8, learning_rate=5e-3, save_every=0)
    held_out = toy.preferences(24, seed=7)
    pairs = [("hello", answer) for answer in ("great", "bad", "no", "yes it is great")]
    made = train_reward_model(
        tiny_model,
        tiny_tokenizer,
        toy.preferences(64),
        settings,
        log,
        held_out,
        normalise_on=pairs,
        **QUICK,
    )
    assert toy.digest(tiny_model) == before
    rows = log.rows
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert rows[-1]["loss"] < 0.4
    wanted = {"accuracy", "margin", "score_mean", "score_min", "score_max", "tokens", "seconds"}
    assert all(wanted <= set(row) for row in rows)
    assert rows[-1]["eval_accuracy"] > 0.8
    prompts = [row["prompt"][0]["content"] for row in held_out]
    sides = [
        made(prompts, [row[side][0]["content"] for row in held_out])
        for side in ("chosen", "rejected")
    ]
    accuracy = sum(a > b for a, b in zip(*sides, strict=True)) / len(prompts)
    assert accuracy == pytest.approx(rows[-1]["eval_accuracy"])
    scores = torch.tensor(made([p for p, _ in pairs], [a for _, a in pairs]))
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1, abs=1e-5)


def test_first_loss_is_bradley_terry_on_the_same_batch(toy, tiny_model, tiny_tokenizer, log):
    data = toy.preferences(12)
    settings = RewardSettings(steps=2, batch_size=4, warmup=0.5, save_every=0, seed=4)
    rows = Data.of(comparison_rows(needed(data, settings), tiny_tokenizer, 256, "d"), settings)
    model = RewardModel(sequence_classifier(tiny_model, seed=4), tiny_tokenizer)
    expected = []
    for start in (0, 4):  # the first step has learning rate 0
        batch = [rows.rows[i] for i in rows.order[start : start + 4]]
        sides = [
            torch.cat([model.raw_scores(*pad_right([row[side]])) for row in batch])
            for side in ("chosen_ids", "rejected_ids")
        ]
        expected.append(bradley_terry_loss(*sides).item())
    train_reward_model(tiny_model, tiny_tokenizer, data, settings, log, **QUICK)
    assert log.column("loss") == pytest.approx(expected, abs=1e-5)


def test_centring_keeps_scores_near_zero(toy, tiny_tokenizer, tmp_path):
    means = []
    for weight in (0.0, 1.0):
        model = sequence_classifier(toy.build_model(tiny_tokenizer))
        with torch.no_grad():
            model.score.weight.fill_(0.3)
        settings = RewardSettings(
            steps=15, batch_size=4, learning_rate=3e-3, centre=weight, save_every=0
        )
        log = RunLog.create(tmp_path / str(weight), {}, seed=0)
        train_reward_model(model, tiny_tokenizer, toy.preferences(40), settings, log, **QUICK)
        means.append(abs(log.rows[-1]["score_mean"]))
    assert means[1] < 0.5 * means[0]


def test_a_classifier_and_a_lora_classifier_are_trained_in_place(toy, tiny_model, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    settings = RewardSettings(steps=12, batch_size=8, learning_rate=2e-2, save_every=0)
    data = toy.preferences(32)
    lora = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", modules_to_save=["score"]
    )
    for model in (
        sequence_classifier(tiny_model),
        get_peft_model(sequence_classifier(tiny_model), lora),
    ):
        before = toy.digest(model)
        made = train_reward_model(model, tiny_tokenizer, data, settings, **QUICK)
        assert made.model is model
        assert toy.digest(model) != before
        good, bad = made(["hello"] * 2, ["it is great", "it is bad"])
        assert good > bad


@pytest.mark.parametrize("pad", ["<|end|>", None], ids=["pad is eos", "no pad"])
def test_trained_at_eos_even_when_padding_is_eos(pad, toy, tiny_model, tiny_tokenizer, log):
    """Transformers' classifier scores the last token that is not padding."""
    tiny_tokenizer.pad_token = pad
    data = toy.preferences(8)
    settings = RewardSettings(steps=1, batch_size=8, save_every=0, seed=4)
    model = RewardModel(sequence_classifier(tiny_model, seed=4), tiny_tokenizer)
    rows = comparison_rows(data, tiny_tokenizer, 256, "d")
    sides = [
        torch.cat([model.raw_scores(*pad_right([row[side]])) for row in rows])
        for side in ("chosen_ids", "rejected_ids")
    ]
    train_reward_model(tiny_model, tiny_tokenizer, data, settings, log, **QUICK)
    assert log.rows[0]["loss"] == pytest.approx(bradley_terry_loss(*sides).item(), abs=1e-5)
    assert tiny_tokenizer.pad_token == pad
    chosen = with_distinct_pad(tiny_tokenizer, rows)
    assert chosen.pad_token_id not in {ids[-1] for row in rows for ids in row.values()}


# ---- text to tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("standard", [False, True], ids=["conversational", "standard"])
def test_inference_reads_the_ids_that_training_saw(standard, toy, tiny_model, tiny_tokenizer):
    import trl.trainer.reward_trainer as module

    data = toy.preferences(6, standard=standard)
    seen = []

    class Spy(module.DataCollatorForPreference):
        def torch_call(self, examples):
            seen.extend(tuple(e[side]) for e in examples for side in ("chosen_ids", "rejected_ids"))
            return super().torch_call(examples)

    original = module.DataCollatorForPreference
    module.DataCollatorForPreference = Spy
    try:
        settings = RewardSettings(steps=3, batch_size=2, save_every=0)
        made = train_reward_model(tiny_model, tiny_tokenizer, data, settings, **QUICK)
    finally:
        module.DataCollatorForPreference = original

    def words(cell):
        return cell if standard else cell[0]["content"]

    prompts = [words(row["prompt"]) for row in data]
    ids = [
        tuple(row)
        for side in ("chosen", "rejected")
        for row in made.encode(prompts, [words(r[side]) for r in data])
    ]
    assert sorted(ids) == sorted(set(seen))
    assert all(tiny_tokenizer.convert_ids_to_tokens(row[-1]) == "<|end|>" for row in ids)


def test_scores_are_plain_floats_in_order_whatever_the_batches(reward):
    alone = [reward([p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert all(type(score) is float for score in alone)
    assert len({round(score, 3) for score in alone}) == 3
    assert reward(PROMPTS, ANSWERS) == pytest.approx(alone, abs=1e-5)
    reward.batch_size = 1
    assert reward(PROMPTS, ANSWERS) == pytest.approx(alone, abs=1e-5)
    assert reward([], []) == []
    with pytest.raises(CourseError, match="3 prompts and 2 completions"):
        reward(PROMPTS, ANSWERS[:2])


def test_padding_side_and_padding_id_do_not_matter(reward, tiny_tokenizer):
    rows = reward.encode(PROMPTS, ANSWERS)
    width = max(map(len, rows)) + 2
    expected = reward(PROMPTS, ANSWERS)
    for fill in (tiny_tokenizer.pad_token_id, tiny_tokenizer.eos_token_id, 17):
        for left in (True, False):
            pads = [[fill] * (width - len(row)) for row in rows]
            ids = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
            ones = [[1] * len(row) for row in rows]
            zeros = [[0] * len(p) for p in pads]
            mask = [z + o if left else o + z for z, o in zip(zeros, ones, strict=True)]
            scores = reward.score_tokens(torch.tensor(ids), torch.tensor(mask))
            assert scores.shape == (3,)
            assert not scores.requires_grad
            assert scores.tolist() == pytest.approx(expected, abs=1e-4), (fill, left)


def test_absolute_positions_are_counted_from_the_first_real_token(tiny_tokenizer):
    """GPT-2 learns a vector for each position, where Llama's rotations only see distances."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2
    )
    policy = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        policy.transformer.wpe.weight.mul_(50)
    made = RewardModel(sequence_classifier(policy), tiny_tokenizer)
    (row,) = made.encode(PROMPTS[:1], ANSWERS[:1])
    pads = [0] * 5
    ids = torch.tensor([pads + row, row + pads])
    mask = torch.tensor([pads + [1] * len(row), [1] * len(row) + pads])
    left, right = made.score_tokens(ids, mask).tolist()
    assert left == pytest.approx(right, abs=1e-5)
    assert right == pytest.approx(made(PROMPTS[:1], ANSWERS[:1])[0], abs=1e-5)


def test_agrees_with_the_classifiers_own_forward(reward):
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids, mask = pad_right(reward.encode([prompt], [answer]))
        with torch.no_grad():
            theirs = reward.model(input_ids=ids, attention_mask=mask).logits.item()
        assert reward.score_tokens(ids, mask).item() == pytest.approx(theirs, abs=1e-5)


# ---- normalisation, files, faults ------------------------------------------------------------


def test_normalisation_is_saved_and_loaded_with_the_model(reward, tmp_path):
    raw = reward(PROMPTS, ANSWERS)
    fitted = reward.fit_normalisation(list(zip(PROMPTS, ANSWERS, strict=True)))
    assert fitted.mean == pytest.approx(sum(raw) / 3, abs=1e-5)
    scores = reward(PROMPTS, ANSWERS)
    assert scores == pytest.approx([(r - fitted.mean) / fitted.std for r in raw], abs=1e-4)
    assert sum(scores) == pytest.approx(0, abs=1e-4)
    reward.conversational = True
    directory = reward.save(tmp_path / "reward")
    names = {path.name for path in directory.iterdir()}
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    loaded = RewardModel.load(directory)
    assert loaded.normalisation == fitted
    assert loaded(PROMPTS, ANSWERS) == scores
    assert not loaded.model.training
    refitted = loaded.fit_normalisation(list(zip(PROMPTS, ANSWERS, strict=True)))
    assert refitted.mean == pytest.approx(fitted.mean, abs=1e-5)  # from raw scores again


def test_normalisation_needs_answers_that_differ(reward):
    with pytest.raises(CourseError, match="at least 2 answers"):
        reward.fit_normalisation([("hello", "yes")])
    with pytest.raises(CourseError, match="use more varied answers"):
        reward.fit_normalisation([("hello", "yes")] * 3)


def test_lora_reward_model_is_merged_when_saved(toy, tiny_model, tiny_tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=4,
        target_modules=["q_proj"],
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    made = RewardModel(get_peft_model(sequence_classifier(tiny_model), lora), tiny_tokenizer)
    made.conversational = True
    made.fit_normalisation(list(zip(PROMPTS, ANSWERS, strict=True)))
    before = toy.digest(made.model)
    made.save(tmp_path / "r")
    assert toy.digest(made.model) == before
    assert RewardModel.load(tmp_path / "r")(PROMPTS, ANSWERS) == pytest.approx(
        made(PROMPTS, ANSWERS), abs=1e-4
    )


def test_missing_and_damaged_files_are_named(reward, tmp_path):
    with pytest.raises(WeightsError, match="holds no reward model"):
        RewardModel.load(tmp_path / "nowhere")
    reward.conversational = True
    reward.fit_normalisation(list(zip(PROMPTS, ANSWERS, strict=True)))
    directory = reward.save(tmp_path / "r")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(WeightsError, match="cannot be read"):
        RewardModel.load(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["reward_mean"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="reward_mean"):
        RewardModel.load(directory)


def test_a_score_that_is_not_finite_names_its_row(reward, tiny_tokenizer):
    with torch.no_grad():
        embedding = reward.trunk.get_input_embeddings().weight
        embedding[tiny_tokenizer.convert_tokens_to_ids("saffron")] = float("inf")
    assert len(reward(PROMPTS, ANSWERS)) == 3
    with pytest.raises(CourseError, match=r"score of row 2 is nan"):
        reward([*PROMPTS[:2], "why ?"], ["yes yes yes", "no", "saffron"])
    ids, mask = pad_right(reward.encode(["hello", "hello"], ["yes", "saffron"]))
    with pytest.raises(CourseError, match="score of row 1"):
        reward.score_tokens(ids, mask)
    with pytest.raises(CourseError, match="row 1 has no token"):
        reward.score_tokens(ids, torch.tensor([[1] * ids.shape[1], [0] * ids.shape[1]]))
    with pytest.raises(CourseError, match=r"row 0 has 3\d\d tokens .* room for 256"):
        reward(["hello " * 300], ["yes"])


def test_what_is_no_reward_model_is_refused(tiny_model, tiny_tokenizer):
    with pytest.raises(CourseError, match=r"num_labels=2.*sequence_classifier"):
        RewardModel(tiny_model, tiny_tokenizer)


def test_trunk_is_a_copy_of_the_policys_with_adapters_merged(toy, tiny_model, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    ids = torch.tensor([[9, 8, 7]])
    plain = sequence_classifier(tiny_model)
    with torch.no_grad():
        expected = tiny_model.base_model(ids).last_hidden_state
        torch.testing.assert_close(plain.base_model(ids).last_hidden_state, expected)
        plain.base_model.layers[0].mlp.up_proj.weight.zero_()
        torch.testing.assert_close(tiny_model.base_model(ids).last_hidden_state, expected)
    assert plain.score.weight.abs().max() < 0.1
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    policy = get_peft_model(tiny_model, lora).eval()
    before = toy.digest(policy)
    with torch.no_grad():
        expected = policy.base_model.model.base_model(ids).last_hidden_state
        merged = sequence_classifier(policy).base_model(ids).last_hidden_state
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert toy.digest(policy) == before
    assert not any("lora" in name for name, _ in sequence_classifier(policy).named_parameters())
