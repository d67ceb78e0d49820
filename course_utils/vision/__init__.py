"""Alignment of a picture captioner, from nothing: scenes, a small ViT-Llama, hallucination, DPO.

    from course_utils import vision

    captioner, losses = vision.train_captioner(vision.CaptionerSettings(steps=300, seed=0))
    train = vision.random_scenes(1000, "train", seed=1)       # SceneSet: .scenes, .images
    heldout = vision.random_scenes(400, "heldout", seed=0)    # combinations never seen
    pairs = vision.preference_pairs(captioner, train)         # its own captions, judged
    aligned, log = vision.align(captioner, train, pairs, vision.AlignSettings(beta=0.5, steps=60))
    before, after = (vision.measure(model, heldout) for model in (captioner, aligned))
    print(before.hallucinated, after.hallucinated, before.coverage, after.coverage)
    print(vision.measure(aligned, heldout.wrong_images()))    # the control: habit without looking
    few = heldout.first(8)
    vision.show_scenes(few, web=vision.describe(captioner, few.images),
                       DPO=vision.describe(aligned, few.images))

`python -m course_utils.vision --seeds 3` measures all of it (claim C20).
Sources: ViT patches (Dosovitskiy et al. 2020), pictures as a prefix (LLaVA, Liu et al. 2023), CHAIR
(Rohrbach et al. 2018), DPO (Rafailov et al. 2023).
"""

from course_utils.vision.align import (
    AlignLog,
    AlignSettings,
    CaptionPair,
    align,
    better,
    preference_pairs,
    sequence_logprobs,
)
from course_utils.vision.captioner import (
    Captioner,
    CaptionerSettings,
    caption_logprobs,
    caption_loss,
    describe,
    generate,
    patches_of,
    train_captioner,
)
from course_utils.vision.captions import (
    HONEST,
    WEB,
    WORDS,
    Web,
    decode,
    encode,
    true_caption,
    web_caption,
)
from course_utils.vision.experiment import Measured, Study, measure, study, table
from course_utils.vision.hallucination import (
    Judgement,
    Mention,
    attributes,
    hallucination_rate,
    judge,
)
from course_utils.vision.scenes import (
    Scene,
    SceneSet,
    Thing,
    pictures_of,
    random_scenes,
    render,
    split_of,
)
from course_utils.vision.show import Gallery, show_scenes

__all__ = [
    "HONEST",
    "WEB",
    "WORDS",
    "AlignLog",
    "AlignSettings",
    "CaptionPair",
    "Captioner",
    "CaptionerSettings",
    "Gallery",
    "Judgement",
    "Measured",
    "Mention",
    "Scene",
    "SceneSet",
    "Study",
    "Thing",
    "Web",
    "align",
    "attributes",
    "better",
    "caption_logprobs",
    "caption_loss",
    "decode",
    "describe",
    "encode",
    "generate",
    "hallucination_rate",
    "judge",
    "measure",
    "patches_of",
    "pictures_of",
    "preference_pairs",
    "random_scenes",
    "render",
    "sequence_logprobs",
    "show_scenes",
    "split_of",
    "study",
    "table",
    "train_captioner",
    "true_caption",
    "web_caption",
]
