"""Growth: a model that has learned gets more layers, or longer latents, and goes on from where it was.

Paper    Net2Net, arXiv:1511.05641: a larger network begins as the function that the smaller one has become.
Lesson   lessons/08_training.ipynb                      Tests   tests/test_growth.py

A block adds what it finds to what comes in, and a new one adds nothing: its last matrices begin with zeros. So behind the
others it hands on what they found. In the same way nothing is made yet of the new numbers of a latent. But they show what
the old ones did not, so that from the first step on all of a token can be asked for.
"""

import dataclasses

import torch

from minivl2.model import DeepSeekVL2, build

# Of the new numbers of a latent, beside the old. They share one norm, and at full size the new would drown the old: the toy
# of weights/ at twice its latents cost 0.419 nats a token instead of 0.162. At 0.3 it costs 0.166
FAINT = 0.3


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
    """A copy of the model that keeps so many numbers of every token (C), more than before, for latent attention.

    Raises ValueError if these are not more, or more than a token has.
    """
    lang = model.config.language
    D, C, R = lang.hidden_size, lang.kv_lora_rank, lang.qk_rope_head_dim
    if C is None or not C < latent <= D:
        raise ValueError(f"latents have {C or 'no'} numbers here, and may get more, up to the {D} of a token; not {latent}")
    wider = build(dataclasses.replace(model.config, language=dataclasses.replace(lang, kv_lora_rank=latent)))
    same = {name: weight for name, weight in model.state_dict().items() if ".attn.kv_" not in name}
    wider.load_state_dict(same, strict=False)
    for layer, old in zip(wider.decoder.layers, (layer.attn for layer in model.decoder.layers), strict=True):
        shown, rope = old.kv_down.weight.split([C, R])                              # (C, D), (R, D)
        unseen = torch.linalg.svd(shown).Vh[C:latent]                               # at right angles to all of them
        layer.attn.kv_down.weight[:] = torch.cat((shown, FAINT * shown.norm(dim=1).mean() * unseen, rope))
        layer.attn.kv_up.weight[:, :C], layer.attn.kv_up.weight[:, C:] = old.kv_up.weight, 0
        # the norm divides by the root of the mean square, to which these hardly add
        faint = (old.kv_norm.weight.mean() / FAINT).expand(latent - C)
        layer.attn.kv_norm.weight[:] = torch.cat((old.kv_norm.weight, faint)) * (C / latent) ** 0.5
    return wider
