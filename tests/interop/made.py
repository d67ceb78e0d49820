"""Random models whose logits differ, and a LoRA that does something."""

from typing import Any

import torch

from course_utils.adapters import apply_lora


def logits(model: Any, ids: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(ids)[None]).logits[0]


def louder(model: Any, times: float = 10.0) -> Any:
    """A random model's logits are all about 0; larger weights make them differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(times)
    return model


def trained_lora(model: Any, **settings: Any) -> Any:
    """Our LoRA with a B that is not zero any more."""
    apply_lora(model, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(std=0.3)
    return model.eval()
