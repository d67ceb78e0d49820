from course_utils.grading.mutants import Mutant

BY_TURNS = """
def completion_mask(ids, headers, end):
    mask = [0] * len(ids)
    starts = [i for i, token in enumerate(ids) if token in set(headers.values())]
    for start, stop in zip(starts, starts[1:] + [len(ids)]):
        if ids[start] != headers["assistant"]:
            continue
        turn = ids[start + 1 : stop]
        length = turn.index(end) + 1 if end in turn else len(turn)
        mask[start + 1 : start + 1 + length] = [1] * length
    return mask
"""

CUMULATIVE = """
import torch

def completion_mask(ids, headers, end):
    x = torch.tensor(ids, dtype=torch.long)
    is_header = torch.zeros(len(ids), dtype=torch.bool)
    for header in headers.values():
        is_header |= x == header
    turn = is_header.long().cumsum(0)  # 0 before the first header
    roles = torch.cat([torch.tensor([-1]), x[is_header]])[turn]
    ends = (x == end).long()
    before = ends.cumsum(0) - ends  # end tokens before this one, in all turns
    at_start = torch.cat([torch.zeros(1, dtype=torch.long), before[is_header]])[turn]
    return (roles == headers["assistant"]) & ~is_header & (before == at_start)
"""

_HEADER = 'answering = token == headers["assistant"]'
MUTANTS = (
    Mutant("zeros", "int(answering)", "0", "zero"),
    Mutant("ones", "return mask", "return [1] * len(ids)", "all"),
    Mutant("inverted", "return mask", "return [1 - bit for bit in mask]", "inverted"),
    Mutant("header", "mask.append(0)", "mask.append(int(answering))", "header counted"),
    Mutant("no end", "int(answering)", "int(answering and token != end)", "end not counted"),
    Mutant("off by one", "return mask", "return mask[1:] + [0]", "off by one"),
    Mutant("the user's", 'headers["assistant"]', 'headers["user"]', "wrong role"),
    Mutant("every end", "int(answering)", "int(answering or token == end)", "every end"),
    Mutant("last answer", _HEADER, _HEADER + "; mask = [0] * len(mask) if answering else mask",
           "last answer"),
    Mutant("first answer", _HEADER, _HEADER + " and 1 not in mask", "first answer"),
    Mutant("end closes nothing", "answering = False\n    return", "pass\n    return",
           "not closed by end"),
    Mutant("headers open only", _HEADER, 'answering = answering or token == headers["assistant"]',
           "not closed by a header"),
    Mutant("two roles only", "headers.values()", '(headers["user"], headers["assistant"])',
           "other header counted"),
    Mutant("never closed", "mask.append(int(answering))\n",
           "mask.append(int(1 in mask or answering))\n", "never closed but for headers"),
    Mutant("end wanted", "return mask", "i = len(mask)\n    while answering and i and mask[i - 1]:\n"
           "        i -= 1\n    return mask[:i] + [0] * (len(mask) - i)", "cut answer"),
    Mutant("starts answering", "answering = False  #", "answering = True  #", "start counted"),
    Mutant("too long", "return mask", "return [0] + mask", "wrong length"),
    Mutant("the ids", "return mask", "return ids", "not a mask"),
    Mutant("no return", "return mask", "mask", "not a mask"),
    Mutant("in place", "return mask", "ids[:] = mask; return mask", "in place"),
    Mutant("needs an assistant", "return mask",
           'ids.index(headers["assistant"]); return mask', "raised"),
    Mutant("hole", "mask = []", "raise NotImplementedError('your code here'); mask = []", "blank"),
)  # fmt: skip

ALTERNATIVES = (BY_TURNS, CUMULATIVE)
