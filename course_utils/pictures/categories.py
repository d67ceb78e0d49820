"""The lecture's two pictures of fine-tuning: all weights move, or small new parts."""

from course_utils.pictures.draw import FROZEN, LINE, TRAINED, Picture, arrow, box, legend, text


def full_fine_tuning() -> Picture:
    """Slide 5: the pretrained weights all move, and each task gets a copy of the whole model."""
    stack = "".join(box(372, 62 + 40 * i, 176, 32, TRAINED, f"layer {4 - i}") for i in range(4))
    tasks = "".join(
        box(690, 38 + 76 * i, 200, 54, TRAINED, f"model for task {name}", "a full copy")
        + arrow(f"M556,140 C620,140 620,{65 + 76 * i} 680,{65 + 76 * i}", f"688,{65 + 76 * i}")
        for i, name in enumerate("ABC")
    )
    drawing = (
        box(12, 62, 190, 62, FROZEN, "pretrained model", "all its weights θ₀")
        + box(12, 158, 190, 62, FROZEN, "data of the task", "prompts and answers")
        + arrow("M204,93 H362", "368,93")
        + arrow("M204,189 H362", "368,189")
        + text(284, 84, "start")
        + text(284, 180, "loss, gradient")
        + text(460, 48, "every weight moves")
        + stack
        + tasks
        + legend(12, 250, "given")
    )
    words = (
        "Full fine-tuning: pretrained model and data of the task -> every weight of every layer is "
        "trained -> a full copy of the model for each task"
    )
    return Picture(words, 910, 276, drawing)


def peft_places() -> Picture:
    """Slide 6: one frozen transformer layer, and where each method puts its small trained part."""
    frozen = (
        box(250, 320, 330, 40, FROZEN, "embeddings of the text")
        + box(250, 206, 330, 60, FROZEN, "attention", "queries, keys, values, output")
        + box(250, 76, 330, 44, FROZEN, "feed-forward")
        + arrow("M415,318 V276", "415,270", "up")
        + arrow("M415,206 V196", "415,190", "up")
        + arrow("M415,146 V130", "415,124", "up")
        + arrow("M415,76 V66", "415,60", "up")
        + arrow("M415,24 V14", "415,8", "up")
    )
    trained = (
        box(250, 150, 330, 38, TRAINED, "adapter: down, bend, up, add")
        + box(250, 22, 330, 36, TRAINED, "adapter: down, bend, up, add")
        + box(28, 320, 190, 40, TRAINED, "trained vectors")
        + arrow("M218,340 H238", "247,340")
        + box(28, 214, 190, 44, TRAINED, "extra keys, values")
        + arrow("M218,236 H238", "247,236")
        + box(612, 214, 150, 44, TRAINED, "+ B A x")
        + arrow("M612,236 H592", "583,236", "left")
        + box(612, 76, 150, 44, TRAINED, "+ B A x")
        + arrow("M612,98 H592", "583,98", "left")
    )
    names = (
        text(123, 312, "prompt tuning")
        + text(123, 206, "prefix tuning, in every layer")
        + text(226, 174, "Houlsby adapter", "end")
        + text(226, 45, "Houlsby adapter", "end")
        + text(687, 206, "LoRA, beside a weight")
        + text(687, 68, "LoRA, beside a weight")
        + text(687, 345, "BitFit: biases of the grey boxes")
        + text(600, 15, "to the next layer", "start")
    )
    dashed = (
        f'<rect x="236" y="4" width="358" height="272" rx="14" fill="none" stroke="{LINE}" '
        'stroke-dasharray="5 4"/>'
    )
    words = (
        "Parameter-efficient fine-tuning: a frozen layer (attention, feed-forward) with small "
        "trained parts: prompt tuning puts vectors before the text, prefix tuning keys and values "
        "into attention, LoRA adds B A x beside a weight, Houlsby adapters stand after attention "
        "and after the feed-forward, BitFit trains biases"
    )
    return Picture(words, 800, 404, frozen + trained + names + dashed + legend(28, 384, "frozen"))
