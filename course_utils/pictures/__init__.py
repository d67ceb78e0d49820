"""The lecture's pictures as inline SVG, each with the same in words.

categories   full fine-tuning; where each parameter-efficient method sits (lesson 01)
sft          step 1 of InstructGPT, packed attention, curves of SFT (02)
reward       the three steps of RLHF; a reward model beside its language model (03)
lora         a trained weight beside a frozen one with A and B (06)
qlora        standard fine-tuning, LoRA and QLoRA, with their bytes (07)
overoptimisation   proxy and gold over √KL, with a slider that stops the run (08)
draw         boxes, arrows, words
"""
