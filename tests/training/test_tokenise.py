"""Token ids are those of TRL's own preparation; what is cut or dropped is counted and said."""

import logging

import pytest
from datasets import Dataset

from course_utils.errors import DataError
from course_utils.training.tokenise import (
    comparison_rows,
    data_order,
    demonstration_rows,
    preference_rows,
)

ROWS = {
    "SFT": (demonstration_rows, "demonstrations"),
    "Reward": (comparison_rows, "preferences"),
    "DPO": (preference_rows, "preferences"),
}


@pytest.mark.parametrize("standard", [False, True], ids=["conversational", "standard"])
@pytest.mark.parametrize("kind", ROWS)
def test_same_ids_as_trl_prepares(kind, standard, toy, tiny_tokenizer, tiny_model, tmp_path):
    import trl

    from course_utils.training.reward_model import sequence_classifier

    make, data = ROWS[kind]
    dataset = getattr(toy, data)(12, standard=standard)
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_length=12
    )
    model = sequence_classifier(tiny_model) if kind == "Reward" else tiny_model
    extra = {"ref_model": toy.build_model(tiny_tokenizer)} if kind == "DPO" else {}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=toy.build_tokenizer(),
        **extra,
    )
    ours = make(dataset, tiny_tokenizer, 12, "data")
    theirs = trainer.train_dataset.select_columns(list(ours[0])).to_list()
    if kind == "DPO":  # TRL cuts in its collator
        for row in theirs:
            for side in ("chosen_ids", "rejected_ids"):
                row[side] = row[side][: 12 - len(row["prompt_ids"])]
    assert ours == theirs
    assert 0 < len(ours) <= 12
    texts = {tiny_tokenizer.decode(v) for row in ours for v in row.values() if -100 not in v}
    assert any(text.endswith("<|end|>") for text in texts)


def test_labels_cover_the_answer_and_its_end_alone(toy, tiny_tokenizer):
    (row,) = demonstration_rows(toy.demonstrations(1), tiny_tokenizer, 99, "data")
    learned = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    text = tiny_tokenizer.decode(learned)
    assert text.startswith("the moon is ")
    assert text.endswith(" <|end|>")
    assert all(label in (-100, t) for t, label in zip(row["input_ids"], row["labels"], strict=True))


def chats(*rows):
    names = ("prompt", "chosen", "rejected")[: len(rows[0])]
    roles = dict(zip(names, ("user", "assistant", "assistant"), strict=False))
    make = {
        n: [[{"role": roles[n], "content": row[i]}] for row in rows] for i, n in enumerate(names)
    }
    return Dataset.from_dict(make)


def test_cut_and_dropped_rows_are_counted(tiny_tokenizer, caplog):
    data = chats(("hello", "yes yes yes yes"), ("hello hello hello hello", "no"), ("hello", "no"))
    data = data.rename_column("chosen", "completion")
    with caplog.at_level(logging.WARNING):
        rows = demonstration_rows(data, tiny_tokenizer, 6, "demos.jsonl")
    assert [len(row["input_ids"]) for row in rows] == [6, 5]
    said = "demos.jsonl: of 3 rows 1 answers cut at 6 tokens; 1 dropped, longer than 6 tokens"
    assert said in caplog.text
    with pytest.raises(
        DataError, match=r"none of 3 rows can be used \(3 dropped.*raise max_length"
    ):
        demonstration_rows(data, tiny_tokenizer, 2, "demos.jsonl")


def test_pairs_that_are_the_same_after_cutting_are_dropped(tiny_tokenizer, caplog):
    data = chats(("hello", "yes no great", "yes no bad"), ("hello", "great", "bad"))
    with caplog.at_level(logging.WARNING):
        dpo = preference_rows(data, tiny_tokenizer, 5, "pairs")
        reward = comparison_rows(data, tiny_tokenizer, 5, "pairs")
    assert len(dpo) == len(reward) == 1
    assert "1 dropped, chosen and rejected are the same tokens" in caplog.text
    assert "of 2 rows 1 dropped, longer than 5 tokens" in caplog.text


def test_conversations_need_a_chat_template(toy, tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        demonstration_rows(toy.demonstrations(1), tiny_tokenizer, 99, "data")


# ---- the order -------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [False, True])
def test_every_row_comes_once_per_pass_in_an_order_of_the_seed(group):
    lengths = [(7 * i) % 31 for i in range(64)]
    order = data_order(lengths, 64, 4, seed=1, group_by_length=group)
    assert sorted(order) == list(range(64))
    assert order == data_order(lengths, 64, 4, seed=1, group_by_length=group)
    assert order != data_order(lengths, 64, 4, seed=2, group_by_length=group)
    assert len(data_order(lengths, 100, 4, 1, group)) == 100
    twice = data_order(lengths, 128, 4, seed=1, group_by_length=group)
    assert sorted(twice) == sorted([*range(64), *range(64)])
    if not group:
        assert twice[:64] == order
        assert twice[64:] != order


def test_batches_of_similar_length_need_less_padding():
    lengths = [(7 * i) % 31 for i in range(640)]

    def padded(order):
        batches = [order[i : i + 4] for i in range(0, len(order), 4)]
        return sum(4 * max(lengths[i] for i in batch) for batch in batches)

    grouped = data_order(lengths, 640, 4, seed=1, group_by_length=True)
    mixed = data_order(lengths, 640, 4, seed=1, group_by_length=False)
    assert padded(grouped) < 1.1 * sum(lengths) < padded(mixed)
    firsts = [lengths[i] for i in grouped[: 16 * 4 : 4]]  # one window: its batches are shuffled
    assert firsts != sorted(firsts)
