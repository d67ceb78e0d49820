# %% [markdown] seconds=60
# # Exercises 02 · Supervised fine-tuning
#
# Four tasks that belong to lesson 02. For each one: write the function, run the check below it until
# it says *passed*, then run the small experiment, which trains with **your** function.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import torch
import torch.nn.functional as F

from course_utils import Lab, check

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
world

# %% [markdown]
# ## Task 1 · The loss of SFT
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# $$\mathcal{L}_{SFT} = -\sum_{t \in \text{completion}} \log \pi_\theta(x_t \mid x_{<t})$$
#
# Write `masked_sft_loss(logits, input_ids, mask, reduction="mean")`.
#
# * `logits` (B, T, V), `input_ids` (B, T), `mask` (B, T) with 1 on the completion's tokens and 0 on the
#   prompt's and on padding;
# * the result has shape (): the mean over all counted tokens of the batch, or their sum with
#   `reduction="sum"`; 0 where no token counts;
# * logits may be as large as several thousand, and may be bfloat16.
#
# <details><summary>A hint</summary>
#
# The logits at position t predict the token at t + 1. So two of the three arguments lose their first
# column, and one its last. `F.log_softmax` is stable where the logarithm of `softmax` is not.
# </details>


# %% task="masked-sft-loss"
def masked_sft_loss(logits, input_ids, mask, reduction="mean"):
    ### BEGIN SOLUTION
    logprobs = F.log_softmax(logits[:, :-1].float(), dim=-1)  # (B, T-1, V)
    chosen = logprobs.gather(-1, input_ids[:, 1:].unsqueeze(-1)).squeeze(-1)  # (B, T-1)
    keep = mask[:, 1:].float()
    total = -(chosen * keep).sum()
    if reduction == "sum":
        return total
    return total / keep.sum().clamp(min=1)
    ### END SOLUTION


# %% task="masked-sft-loss" points=4
check.masked_sft_loss(masked_sft_loss)
