"""Growth: a vision tower that has learned gets more layers, which change nothing until they learn.

Paper    Net2Net, arXiv:1511.05641: a larger network begins as the function that the smaller one has become.
Lesson   lessons/08_training.ipynb                      Tests   tests/test_growth.py

A block adds what it finds to what comes in, and a new one adds nothing (vision.py begins its last matrices with zeros). So
behind the others it hands on what they found.
"""

import dataclasses

from minivl2.model import DeepSeekVL2, build


def deepened(model: DeepSeekVL2, layers: int) -> DeepSeekVL2:
    """A copy of the model with so many layers more in its vision tower."""
    cfg = model.config
    deeper = build(dataclasses.replace(cfg, vision=dataclasses.replace(cfg.vision, layers=cfg.vision.layers + layers)))
    deeper.load_state_dict(model.state_dict(), strict=False)
    return deeper
