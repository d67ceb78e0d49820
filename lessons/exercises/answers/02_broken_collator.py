from course_utils.grading.mutants import Mutant

PAD_SEQUENCE = """
import torch
from torch.nn.utils.rnn import pad_sequence

def collate(rows, pad, side="right"):
    def filled(sequences, value):
        tensors = [torch.tensor(s) for s in sequences]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    return {
        "input_ids": filled([row["input_ids"] for row in rows], pad),
        "attention_mask": filled([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": filled([row["labels"] for row in rows], -100),
    }
"""

LISTS = """
import torch

def collate(rows, pad, side="right"):
    width = max(map(len, (row["input_ids"] for row in rows)))
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        n = len(row["input_ids"])
        columns = ((row["input_ids"], pad), ([1] * n, 0), (row["labels"], -100))
        for name, (values, filling) in zip(batch, columns):
            more = [filling] * (width - n)
            batch[name].append(values + more if side == "right" else more + values)
    return {name: torch.tensor(values) for name, values in batch.items()}
"""

_RETURN = 'return {"input_ids": ids'
_LABELS = 'torch.tensor(row["labels"])'
MUTANTS = (
    Mutant("zeros", _RETURN, 'return {"input_ids": ids * 0', "zero"),
    Mutant("one side only", 'if side == "right" else', "if True else", "wrong side"),
    Mutant("the other side", 'side == "right"', 'side == "left"', "wrong side"),
    Mutant("labels on one side", "labels[i, where]", "labels[i, :n]", "wrong side"),
    Mutant("mask on one side", "mask[i, where]", "mask[i, :n]", "wrong side"),
    Mutant("filling counted", "labels = torch.full((len(rows), width), -100)",
           "labels = torch.full((len(rows), width), pad)", "filling counted"),
    Mutant("zero for ignored", "labels = torch.full((len(rows), width), -100)",
           "labels = torch.full((len(rows), width), 0)", "zero"),
    Mutant("mask lost", _LABELS, 'torch.tensor(row["input_ids"])', "mask lost"),
    Mutant("labels are ids", '"labels": labels', '"labels": ids', "ids"),
    Mutant("labels by id", _RETURN, "labels[ids == pad] = -100; " + _RETURN, "hidden by id"),
    Mutant("attention by id", '"attention_mask": mask', '"attention_mask": (ids != pad).long()',
           "hidden by id"),
    Mutant("rolled", '"labels": labels', '"labels": labels.roll(-1, 1)', "shifted"),
    Mutant("all attended", "mask = torch.zeros(", "mask = torch.ones(", "all"),
    Mutant("prompt unread", '"attention_mask": mask', '"attention_mask": (labels != -100).long()',
           "labels' mask"),
    Mutant("inverted", '"attention_mask": mask', '"attention_mask": 1 - mask', "inverted"),
    Mutant("pad is 0", "torch.full((len(rows), width), pad)",
           "torch.full((len(rows), width), 0)", "zeros for pad"),
    Mutant("pad is -100", "torch.full((len(rows), width), pad)",
           "torch.full((len(rows), width), -100)", "label for pad"),
    Mutant("shortest row", "width = max(", "width = min(", "raised"),
    Mutant("too wide", "width = max(", "width = 1 + max(", "wrong shape"),
    Mutant("float mask", '"attention_mask": mask', '"attention_mask": mask.float()',
           "wrong dtype"),
    Mutant("in place", _RETURN,
           'rows[0]["input_ids"] += [pad]; rows[0]["labels"] += [-100]; ' + _RETURN, "in place"),
    Mutant("no mask", '"attention_mask": mask, ', "", "missing key"),
    Mutant("no return", "return {", "_ = {", "not a dictionary"),
    Mutant("hole", "width = max(", "raise NotImplementedError('your code here'); width = max(",
           "blank"),
)  # fmt: skip

ALTERNATIVES = (PAD_SEQUENCE, LISTS)
