"""Growth: a model that has learned gets more layers, or longer latents, which change nothing until they learn.

Paper    Net2Net, arXiv:1511.05641: a larger network begins as the function that the smaller one has become.
Lesson   lessons/08_training.ipynb                      Tests   tests/test_growth.py

A block adds what it finds to what comes in, and a new one adds nothing: its last matrices begin with zeros. So behind the
others it hands on what they found. What a new number of a latent weighs begins with zeros, too, so it is 0 for every
token, whatever is made of it.
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


@torch.no_grad()
def widened(model: DeepSeekVL2, latent: int) -> DeepSeekVL2:
    """A copy of the model that remembers so many numbers of every token for its attention (C), more than before."""
    lang, old = model.config.language, model.state_dict()
    C, R = lang.kv_lora_rank, lang.qk_rope_head_dim
    if C is None or latent <= C:
        raise ValueError(f"latents of {latent} numbers are no longer than those it has ({C or 'none'})")
    wider = build(dataclasses.replace(model.config, language=dataclasses.replace(lang, kv_lora_rank=latent)))
    wider.load_state_dict({name: weight for name, weight in old.items() if ".attn.kv_" not in name}, strict=False)
    for layer, before in zip(wider.decoder.layers, model.decoder.layers, strict=True):
        down, up, norm = layer.attn.kv_down.weight, layer.attn.kv_up.weight, layer.attn.kv_norm.weight
        down.zero_()
        down[:C], down[-R:] = before.attn.kv_down.weight.split([C, R])
        up[:, :C] = before.attn.kv_up.weight
        norm[:] = before.attn.kv_norm.weight.mean()
        norm[:C] = before.attn.kv_norm.weight
        norm *= (C / latent) ** 0.5         # it divides by the root of the mean square, and as many more are zeros
    return wider
