"""The captioner: a picture's patches as a prefix, then a small Llama that writes words.

    patches (B, 16, 108) -> linear + row and column positions -> (B, 16, D)   the prefix
    words   (B, T)       -> the decoder's own embeddings      -> (B, T, D)
    decoder([prefix, words]) -> logits, of which only those at the words count

To the decoder a picture is sixteen more tokens that it may look at: so all that was said about
log-probabilities, SFT and DPO holds unchanged, with the picture in the place of the prompt.
"""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from course_utils.errors import CourseError
from course_utils.modes import evaluating
from course_utils.objectives import next_token_logprobs, sft_loss
from course_utils.vision.captions import (
    END,
    MAX_WORDS,
    PAD,
    START,
    WEB,
    WORDS,
    Web,
    decode,
    encode,
    web_caption,
)
from course_utils.vision.scenes import BACKGROUND, SIDE, random_scenes

PATCH = 6  # pixels
GRID = SIDE // PATCH  # patches a side
PATCHES = GRID * GRID
CONTRAST = 3.0  # pictures are dark; an empty patch should say nothing, a shape a lot


@dataclass(frozen=True)
class CaptionerSettings:
    """The captioner and its supervised training."""

    hidden: int = 64  # model width D
    layers: int = 2
    heads: int = 4
    intermediate: int = 160  # width of the gated feed-forward
    scenes: int = 6000  # scenes with one web caption each
    steps: int = 300  # optimizer steps
    batch_size: int = 64  # captions a step
    learning_rate: float = 4e-3  # peak; linear warm-up, cosine to a tenth
    warmup: int = 20  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "intermediate", "scenes", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise CourseError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise CourseError(
                f"hidden ({self.hidden}) must be heads ({self.heads}) times an even number"
            )
        if self.batch_size > self.scenes:
            raise CourseError(f"batch_size {self.batch_size} is more than {self.scenes} scenes")
        if not 0 < self.learning_rate < math.inf:
            raise CourseError(f"learning_rate must be > 0, got {self.learning_rate}")


def patches_of(images: Tensor) -> Tensor:
    """(B, 3, SIDE, SIDE) -> (B, PATCHES, 3 * PATCH * PATCH), in reading order."""
    if images.dim() != 4 or images.shape[1:] != (3, SIDE, SIDE):
        raise CourseError(
            f"pictures must have shape (B, 3, {SIDE}, {SIDE}), got {tuple(images.shape)}"
        )
    cut = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, GRID, GRID, PATCH, PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(len(images), PATCHES, -1)


class Captioner(nn.Module):
    """Patch embedding, positions, and a Llama decoder of its own small vocabulary."""

    def __init__(self, settings: CaptionerSettings | None = None) -> None:
        super().__init__()
        settings = settings or CaptionerSettings()
        width = settings.hidden
        self.look = nn.Linear(3 * PATCH * PATCH, width)
        self.row = nn.Parameter(0.02 * torch.randn(GRID, 1, width))
        self.column = nn.Parameter(0.02 * torch.randn(1, GRID, width))
        self.decoder = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(WORDS),
                hidden_size=width,
                intermediate_size=settings.intermediate,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                num_key_value_heads=settings.heads,
                max_position_embeddings=PATCHES + MAX_WORDS + 2,
                tie_word_embeddings=True,
                initializer_range=0.1,  # at Llama's 0.02 a decoder so narrow wakes up slowly
                pad_token_id=PAD,
                bos_token_id=START,
                eos_token_id=END,
            )
        )

    def prefix(self, images: Tensor) -> Tensor:
        """(B, 3, SIDE, SIDE) -> (B, PATCHES, D): what the decoder reads before the first word."""
        places = (self.row + self.column).reshape(PATCHES, -1)  # (PATCHES, D)
        return self.look(CONTRAST * patches_of(images - BACKGROUND)) + places

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits at the words, (B, T, V): entry t predicts word t + 1 from picture and words <= t.

        Args: images: (B, 3, SIDE, SIDE). ids: (B, T) from `encode`, right-padded.
        """
        words = self.decoder.get_input_embeddings()(ids)  # (B, T, D)
        both = torch.cat([self.prefix(images), words], dim=1)  # (B, PATCHES + T, D)
        hidden = self.decoder.model(inputs_embeds=both, use_cache=False).last_hidden_state
        return self.decoder.lm_head(hidden[:, PATCHES:])


def caption_logprobs(model: Captioner, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log π(word | picture, words before it), and which of these count.

    Returns: (B, T - 1) nats, and (B, T - 1) bool: True on words and the end, False on padding. The
    patches and the start have no entry: nobody has to predict them.
    """
    return next_token_logprobs(model(images, ids), ids), ids[:, 1:] != PAD


def caption_loss(model: Captioner, images: Tensor, ids: Tensor) -> Tensor:
    """L_SFT: -log π of the captions, per word; the picture is read, never predicted."""
    return sft_loss(*caption_logprobs(model, images, ids))


def train_captioner(
    settings: CaptionerSettings | None = None, web: Web = WEB
) -> tuple[Captioner, list[float]]:
    """A captioner that imitates the web's captions, and its loss at every step (nats a word)."""
    settings = settings or CaptionerSettings()
    data = random_scenes(settings.scenes, "train", settings.seed)
    rng = random.Random(f"web {settings.seed}")
    ids = encode([web_caption(scene, rng, web) for scene in data.scenes])  # (N, T)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Captioner(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, settings.warmup, settings.steps)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    losses: list[float] = []
    while len(losses) < settings.steps:
        order = torch.randperm(len(ids), generator=generator)
        for rows in order.split(settings.batch_size)[: settings.steps - len(losses)]:
            loss = caption_loss(model, data.images[rows], ids[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
    return model.eval(), losses


def warm_cosine(step: int, warmup: int, steps: int) -> float:
    """The learning rate's factor: up in a straight line, then half a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, done))


@torch.no_grad()
def generate(
    model: Captioner,
    images: Tensor,
    temperature: float = 1.0,
    seed: int = 0,
    max_words: int = MAX_WORDS,
    use_cache: bool = True,
) -> Tensor:
    """Writes a caption for each picture, word by word: (B, <= max_words + 2) ids, as `encode`'s.

    Args:
        temperature: the logits are divided by it; 0 takes the likeliest word.
        max_words: captions end there at the latest.
        use_cache: keep the keys and values of what was read, or read all of it again for each word.
    """
    if not 0 <= temperature < math.inf:
        raise CourseError(f"temperature must be >= 0 and finite, got {temperature}")
    if not 1 <= max_words <= MAX_WORDS:
        raise CourseError(f"max_words must be between 1 and {MAX_WORDS}, got {max_words}")
    generator = torch.Generator().manual_seed(seed)
    embed = model.decoder.get_input_embeddings()
    ids = torch.full((len(images), 1), START)  # (B, 1)
    done = torch.zeros(len(images), dtype=torch.bool)
    with evaluating(model):
        cache = DynamicCache(config=model.decoder.config) if use_cache else None
        step = torch.cat([model.prefix(images), embed(ids)], dim=1)  # (B, PATCHES + 1, D)
        for _ in range(max_words + 1):  # the end counts too
            hidden = model.decoder.model(
                inputs_embeds=step, past_key_values=cache, use_cache=use_cache
            ).last_hidden_state
            logits = model.decoder.lm_head(hidden[:, -1])  # (B, V)
            logits[:, [PAD, START]] = -torch.inf  # never words
            if ids.shape[1] == max_words + 1:
                word = torch.full((len(images),), END)
            elif temperature == 0:
                word = logits.argmax(dim=-1)  # (B,)
            else:
                chances = (logits / temperature).softmax(dim=-1)
                word = torch.multinomial(chances, 1, generator=generator).squeeze(1)
            word = word.masked_fill(done, PAD)
            ids = torch.cat([ids, word.unsqueeze(1)], dim=1)
            done |= word == END
            if bool(done.all()):
                break
            new = embed(word).unsqueeze(1)  # (B, 1, D)
            step = new if use_cache else torch.cat([step, new], dim=1)
    return ids


def describe(
    model: Captioner,
    images: Tensor,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 500,
) -> list[str]:
    """The captions that `generate` writes, as text, for any number of pictures."""
    if batch_size < 1:
        raise CourseError(f"batch_size must be at least 1, got {batch_size}")
    captions = []
    for i, part in enumerate(images.split(batch_size)):
        captions += decode(generate(model, part, temperature, seed=1000 * seed + i))
    return captions
