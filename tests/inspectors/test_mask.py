"""MaskViewer: the same losses as our objectives (held against TRL elsewhere), and every bad row."""

from typing import Any

import pytest
import torch

from course_utils.errors import DataError
from course_utils.inspectors import MaskViewer
from course_utils.objectives import dpo_loss, next_token_logprobs, sft_loss

from .conftest import NASTY, settle


@pytest.fixture
def sft_rows(tiny_tokenizer: Any) -> list[dict[str, Any]]:
    rows = []
    for text in ("the moon is small", "yes people went with a rocket"):
        chat = [
            {"role": "user", "content": "explain the moon"},
            {"role": "assistant", "content": text},
        ]
        start = tiny_tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_dict=False
        )
        ids = tiny_tokenizer.apply_chat_template(chat, return_dict=False)
        rows.append({"input_ids": ids, "labels": [-100] * len(start) + ids[len(start) :]})
    return rows


@pytest.fixture
def dpo_rows(tiny_tokenizer: Any) -> list[dict[str, Any]]:
    def ids(text: str) -> list[int]:
        return tiny_tokenizer(text)["input_ids"]

    return [
        {
            "prompt_ids": ids("explain the moon"),
            "chosen_ids": ids("big dark small <|end|>"),
            "rejected_ids": ids("sorry i cannot help you <|end|>"),
        }
    ]


def changed(model: Any) -> Any:
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return other


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    batch = torch.tensor([ids])
    with torch.no_grad():
        return next_token_logprobs(model(input_ids=batch).logits, batch)


def test_sft_loss_is_the_objectives(tiny_tokenizer: Any, tiny_model: Any, sft_rows: Any) -> None:
    viewer = MaskViewer(sft_rows, tiny_tokenizer, tiny_model)
    total, count = 0.0, 0
    for i, row in enumerate(sft_rows):
        mask = torch.tensor([row["labels"]])[:, 1:] != -100
        found = logprobs(tiny_model, row["input_ids"])
        loss = sft_loss(found, mask)
        assert viewer.state["examples"][i]["loss"] == pytest.approx(float(loss), rel=1e-3)
        frame = viewer.frame(i)
        assert frame.value[frame.counted].mean() == pytest.approx(float(loss), rel=1e-3)
        assert (frame.value[~frame.counted] == 0).all()
        total += float(sft_loss(found, mask, "sum"))
        count += int(mask.sum())
    assert viewer.summary()["loss"] == pytest.approx(total / count, rel=1e-3)
    assert viewer.summary()["counted"] == count


def test_dpo_loss_is_the_objectives(tiny_tokenizer: Any, tiny_model: Any, dpo_rows: Any) -> None:
    policy = changed(tiny_model)
    viewer = MaskViewer(dpo_rows, tiny_tokenizer, policy, tiny_model, beta=0.3)
    row = dpo_rows[0]
    sums = []
    for model in (policy, tiny_model):
        for side in ("chosen_ids", "rejected_ids"):
            found = logprobs(model, row["prompt_ids"] + row[side])
            sums.append(found[:, len(row["prompt_ids"]) - 1 :].sum(1))
    loss = dpo_loss(*sums, beta=0.3)
    loss = loss[0] if isinstance(loss, tuple) else loss
    assert viewer.summary()["loss"] == pytest.approx(float(loss), rel=1e-3)
    margin = 0.3 * float((sums[0] - sums[2]) - (sums[1] - sums[3]))
    assert viewer.state["examples"][0]["margin"] == pytest.approx(margin, rel=1e-3)
    weight = 0.3 / (1 + torch.tensor(margin).exp())
    assert viewer.state["examples"][0]["weight"] == pytest.approx(float(weight), rel=1e-3)


def test_masks_of_other_names_and_the_first_token(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("yes the moon")["input_ids"]
    for name in ("completion_mask", "assistant_masks"):
        viewer = MaskViewer([{"input_ids": ids, name: [1, 0, 1]}], tiny_tokenizer)
        assert list(viewer.frame().counted) == [False, False, True]  # nothing precedes the first
        assert viewer.summary()["loss"] is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "row 0 has the keys"),
        ({"input_ids": [1, 2]}, "nothing that says what counts"),
        ({"input_ids": [1, 2], "labels": [1]}, "2 input_ids and 1 labels"),
    ],
)
def test_rows_of_no_kind_are_named(tiny_tokenizer: Any, row: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        MaskViewer([row], tiny_tokenizer)


def test_text_and_small_pages(tiny_tokenizer: Any, tiny_model: Any, sft_rows: Any) -> None:
    viewer = MaskViewer(sft_rows * 300, tiny_tokenizer, tiny_model)
    assert len(viewer.html().encode()) <= 60_000
    assert "600 rows, the loss counts" in repr(viewer)
    assert repr(MaskViewer([], tiny_tokenizer)) == "MaskViewer: no rows"


# ---- in the browser --------------------------------------------------------------------------


def test_rows_and_tokens_are_read_by_keys(
    tiny_tokenizer: Any, tiny_model: Any, sft_rows: Any, live: Any, shot: Any
) -> None:
    viewer = MaskViewer(sft_rows, tiny_tokenizer, tiny_model)
    page = live(viewer)
    page.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    frame = viewer.frame(1)
    assert page.locator(".sides .masked").count() == int((~frame.counted).sum())
    assert page.locator(".sides .heat").count() == int(frame.counted.sum())
    assert "of the row's loss" in page.locator(".readout").text_content()
    page.locator(".sides .token").nth(1).click()
    assert "read, but not learned" in page.locator(".readout").text_content()
    shot(page, "mask-light")


def test_dpo_has_two_sides(
    tiny_tokenizer: Any, tiny_model: Any, dpo_rows: Any, show: Any, shot: Any
) -> None:
    viewer = MaskViewer(dpo_rows, tiny_tokenizer, changed(tiny_model), tiny_model)
    page = show(viewer, dark=True)
    assert page.locator(".sides > div").count() == 2
    assert "gradient weight" in page.locator(".facts").text_content()
    shot(page, "mask-dark")


def test_empty_and_nasty_rows(tiny_tokenizer: Any, live: Any) -> None:
    assert "No rows" in live(MaskViewer([], tiny_tokenizer)).locator(".empty").text_content()

    class Odd:
        all_special_ids = ()

        def decode(self, ids: list[int]) -> str:
            return "".join([NASTY, "שלום", "🙂", "\n"][i] for i in ids)

    page = live(MaskViewer([{"input_ids": [0, 1, 2, 3], "labels": [-100, 1, 2, 3]}], Odd()))
    assert NASTY in page.locator(".tokens").text_content()
    assert page.evaluate("window.hacked") is None
