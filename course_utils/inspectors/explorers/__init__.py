"""Explorers: closed forms with sliders. They need no run, no model and, on a page, no kernel.

The maths of each stands twice: in its ES module, and here as calls of the course's own functions
(objectives, quantization, memory, adapters). tests/inspectors/explorers holds the two to each
other. README.md in the folder above says how inspectors work; explorer.py adds the controls.
"""
