"""Growth: a model that has learned gets more layers, which change nothing until they learn.

Paper    Net2Net, arXiv:1511.05641: a larger network begins as the function that the smaller one has become.
Lesson   lessons/08_training.ipynb                      Tests   tests/test_growth.py

A block adds what it finds to what comes in, and a new one adds nothing: its last matrices begin with zeros. So behind the
others it hands on what they found.
"""

import dataclasses

import torch

from minivl2.model import DeepSeekVL2, build


@torch.no_grad()
def deepened(model: DeepSeekVL2, vision: int = 0, decoder: int = 0) -> DeepSeekVL2:
    """A copy of the model with so many layers more in its vision tower, and in its decoder."""
    cfg, old = model.config, model.state_dict()
    deeper = build(dataclasses.replace(
        cfg, vision=dataclasses.replace(cfg.vision, layers=cfg.vision.layers + vision),
        language=dataclasses.replace(cfg.language, num_hidden_layers=cfg.language.num_hidden_layers + decoder)))
    deeper.load_state_dict(old, strict=False)
    for name, weight in deeper.decoder.named_parameters():      # those of a vision tower begin so anyway (vision.py)
        if f"decoder.{name}" not in old and ("o_proj" in name or "down_proj" in name):
            weight.zero_()
    return deeper
