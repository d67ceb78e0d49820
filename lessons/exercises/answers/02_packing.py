from course_utils.grading.mutants import Mutant

BLOCKS = """
import torch

def pack(rows, width, pad):
    lengths = [len(row["input_ids"]) for row in rows]
    left = width - sum(lengths)
    if left < 0:
        raise ValueError("too long")
    blocks = [torch.tril(torch.ones(n, n)) for n in lengths] + [torch.ones(left, left)]
    positions = torch.cat([torch.arange(n) for n in [*lengths, left]])
    labels = [x for row in rows for x in [-100, *row["labels"][1:]]]
    return {
        "input_ids": torch.tensor([[t for row in rows for t in row["input_ids"]] + [pad] * left]),
        "position_ids": positions[None],
        "labels": torch.tensor([labels + [-100] * left]),
        "attention_mask": torch.block_diag(*blocks).bool()[None, None],
    }
"""

COMPARED = """
import torch

def pack(rows, width, pad):
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [label for row in rows for label in row["labels"]]
    owner = [k for k, row in enumerate(rows) for _ in row["input_ids"]]
    if len(ids) > width:
        raise ValueError(f"{len(ids)} > {width}")
    filling = width - len(ids)
    ids, labels = ids + [pad] * filling, labels + [-100] * filling
    owner = torch.tensor(owner + [-1] * filling)
    place = torch.arange(width)
    start = torch.ones(width, dtype=torch.bool)
    start[1:] = owner[1:] != owner[:-1]
    positions = place - torch.where(start, place, 0).cummax(0).values
    allowed = (owner[:, None] == owner[None, :]) & (place[:, None] >= place[None, :])
    labels = torch.tensor(labels).masked_fill(positions == 0, -100)
    return {
        "input_ids": torch.tensor(ids)[None],
        "position_ids": positions[None],
        "labels": labels[None],
        "attention_mask": allowed[None, None],
    }
"""

_BLOCK = "allowed[here, here] = torch.ones(n, n).tril().bool()"
_RETURN = 'return {"input_ids": ids'
MUTANTS = (
    Mutant("zeros", _RETURN, 'return {"input_ids": ids * 0', "zero"),
    Mutant("run on", "= torch.arange(n)", "= torch.arange(start, start + n)", "positions run on"),
    Mutant("from 1", "= torch.arange(n)", "= torch.arange(n) + 1", "positions from 1"),
    Mutant("no positions", "= torch.arange(n)", "= 0", "zero"),
    Mutant("first token", "labels[0, start] = -100", "pass", "first token counted"),
    Mutant("first of the row", "labels[0, start]", "labels[0, 0]", "only the first example's"),
    Mutant("last token", "labels[0, start]", "labels[0, start + n - 1]", "last token dropped"),
    Mutant("mask lost", 'torch.tensor(row["labels"])', 'torch.tensor(row["input_ids"])',
           "mask lost"),
    Mutant("filling counted", "labels = torch.full((1, width), -100)",
           "labels = torch.full((1, width), pad)", "filling counted"),
    Mutant("shifted", '"labels": labels', '"labels": labels.roll(-1, 1)', "shifted"),
    Mutant("filled left", _RETURN, 'return {"input_ids": ids.roll(width - used, 1)',
           "filled left"),
    Mutant("sorted", "for row in rows:",
           'for row in sorted(rows, key=lambda r: -len(r["input_ids"])):', "sorted"),
    Mutant("leak", _BLOCK, "allowed[here, : start + n] = torch.ones(n, start + n).tril(start)"
           ".bool()", "leak"),
    Mutant("not causal", ".tril()", "", "not causal"),
    Mutant("transposed", ".tril()", ".triu()", "transposed"),
    Mutant("not itself", ".tril()", ".tril(-1)", "not itself"),
    Mutant("inverted", '"attention_mask": allowed', '"attention_mask": ~allowed', "inverted"),
    Mutant("a bias", '"attention_mask": allowed', '"attention_mask": allowed.float()',
           "wrong dtype"),
    Mutant("two dimensions", "allowed[None, None]}", "allowed}", "wrong shape"),
    Mutant("empty rows", "torch.eye(width, dtype=torch.bool)  #",
           "torch.zeros(width, width, dtype=torch.bool)  #", "empty rows"),
    Mutant("attention by id", _RETURN, "allowed &= (ids[0] != pad) | torch.eye(width).bool() "
           "& (torch.arange(width) >= used); " + _RETURN, "hidden by id"),
    Mutant("labels by id", _RETURN, "labels[ids == pad] = -100; " + _RETURN, "hidden by id"),
    Mutant("cut silently", "if used > width:",
           "while used > width:\n        rows = rows[:-1]\n"
           '        used = sum(len(row["input_ids"]) for row in rows)\n    if False:', "too long"),
    Mutant("in place", "        start += n", '        row["labels"][0] = -100\n        start += n',
           "in place"),
    Mutant("no return", "return {", "_ = {", "not a dictionary"),
    Mutant("hole", "used = sum", "raise NotImplementedError('your code here'); used = sum",
           "blank"),
)  # fmt: skip

ALTERNATIVES = (BLOCKS, COMPARED)
