"""Several LoRA adapters on one base: swap, weigh, combine and merge them. PEFT is behind it.

adapters = AdapterSet(model)                       # a plain model, or a PEFT model with LoRAs
adapters.add("pirate", "runs/pirate")              # a directory or an Adapter; base is checked
adapters.set("pirate"), adapters.set(None)         # hot-swap; None is the base
adapters.set_weights({"pirate": 0.7, "bard": -0.2})         # ΔW = 0.7 ΔW₁ - 0.2 ΔW₂, at once
adapters.combine("both", {"pirate": 1, "bard": 1}, "ties")  # a new adapter of its own
adapters.merge(), adapters.unmerge()               # into the weights and back, bit for bit

adapter_set  AdapterSet
methods      the ways to make one adapter of several, and which ranks they need
files        an adapter apart from its model, and which base it was trained on
"""

from course_utils.composition.adapter_set import AdapterSet
from course_utils.composition.files import Adapter, describe_base
from course_utils.composition.methods import METHODS, Method, resulting_rank

__all__ = ["METHODS", "Adapter", "AdapterSet", "Method", "describe_base", "resulting_rank"]
