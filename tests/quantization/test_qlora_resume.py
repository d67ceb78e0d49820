"""A killed QLoRA training goes on bit for bit, also with the 8-bit paged optimizer."""

import copy

import pytest
import torch

from course_utils import qlora
from course_utils.data import worldsets
from course_utils.training.run import RunLog
from course_utils.training.sft import SFTSettings, train_sft

pytest.importorskip("bitsandbytes")


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", [None, qlora.OPTIMIZER])
def test_resume(tmp_path, monkeypatch, optimizer):
    start, tokenizer = qlora.prepare("tiny", rank=4, device="cpu")
    rows = worldsets.demonstrations(n=32)
    settings = SFTSettings(steps=6, batch_size=4, save_every=3, optimizer=optimizer)

    def run(name, resume=False):
        model = copy.deepcopy(start)
        log = RunLog.create(tmp_path / name, {}, seed=0, resume=resume)
        train_sft(model, tokenizer, rows, settings, log, resume=resume, progress=False)
        return {n: p for n, p in model.named_parameters() if p.requires_grad}

    whole = run("whole")
    append = RunLog.append

    def dies_at_5(self, row):
        append(self, row)
        if row["step"] == 5:
            raise Killed

    monkeypatch.setattr(RunLog, "append", dies_at_5)
    with pytest.raises(Killed):
        run("broken")
    monkeypatch.setattr(RunLog, "append", append)
    again = run("broken", resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
