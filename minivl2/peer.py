"""The same shapes as `transformers` computes them, to stand beside our figures in the same run of `minivl2 bench`.

Source   transformers: DeepseekOcr2TextModel (multi-head), DeepseekV2Model (latent), SiglipVisionModel.
Tests    tests/test_bench.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from minivl2 import cost
from minivl2.config import Config
from minivl2.roofline import Figure, plain_word_bytes, prompt_flops, seconds, vision_flops, word_flops

SHAPES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size",
          "max_position_embeddings", "n_group", "topk_group")
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def figures(
    config: Config, dtype: torch.dtype, tiles: int, prompt: int, words: int, say: Callable[[str], None]
) -> list[Figure]:
    """Vision, prompt, decoding; [] where transformers is not installed, or does not fit into the memory that is free."""
    try:
        import transformers
    except ImportError:
        say("transformers is not installed, so nothing stands beside these figures")
        return []
    with torch.device("meta"):
        tower, decoder = siglip(config), deepseek(config)
        head = nn.Linear(config.language.hidden_size, config.language.vocab_size, bias=False)
    modules = [tower, decoder, head]
    needed = sum(p.numel() for module in modules for p in module.parameters()) * dtype.itemsize
    if needed > 0.8 * free_memory():
        say(f"transformers would need {cost.human(needed)} for the same shapes, more than is free: left out")
        return []
    for module in modules:
        fill(module.to(dtype).to_empty(device="cpu").eval())
    size = config.vision.image_size
    pixels = torch.randn(tiles, 3, size, size, dtype=dtype)
    ids = torch.randint(config.language.vocab_size, (1, prompt))

    def step(ids: torch.Tensor, cache) -> torch.Tensor:
        return head(decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1])

    def decode() -> float:
        cache, taken = transformers.DynamicCache(), []
        step(ids[:, words:], cache)
        for token in ids[:, :words].split(1, dim=1):
            taken.append(seconds(step, token, cache))
        return median(taken)

    def size(*modules: nn.Module) -> int:
        return sum(p.nbytes for module in modules for p in module.parameters())

    return [
        Figure("transformers: vision", "tiles/s", tiles, tiles * vision_flops(config), size(tower), "flops",
               lambda: seconds(tower, pixels)),
        Figure("transformers: prompt", "tokens/s", prompt, prompt_flops(config, prompt), size(decoder, head), "flops",
               lambda: seconds(step, ids, transformers.DynamicCache())),
        Figure("transformers: decode", "tokens/s", 1, word_flops(config, prompt), plain_word_bytes(config, prompt, dtype),
               "bytes", decode),
    ]


def siglip(config: Config) -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel
    v = config.vision
    return SiglipVisionModel(SiglipVisionConfig(
        hidden_size=v.width, intermediate_size=v.mlp_width, num_hidden_layers=v.layers, num_attention_heads=v.heads,
        image_size=v.image_size, patch_size=v.patch_size, vision_use_head=False))


def deepseek(config: Config) -> nn.Module:
    """The base model's gate transformers has only beside another attention: there the softmax gate stands in, which costs
    the same."""
    lang = config.language
    shapes = {name: getattr(lang, name) for name in SHAPES}
    if lang.use_mla:
        from transformers.models.deepseek_v2 import modeling_deepseek_v2 as theirs
        cfg = theirs.DeepseekV2Config(**shapes, **{name: getattr(lang, name) for name in LATENT},
                                      first_k_dense_replace=lang.first_k_dense_replace)
        cfg.head_dim = lang.qk_rope_head_dim        # their rotary embedding reads its width from here
        return theirs.DeepseekV2Model(cfg)
    from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2 as theirs
    kinds = ["sparse" if lang.is_moe(i) else "dense" for i in range(lang.num_hidden_layers)]
    return theirs.DeepseekOcr2TextModel(theirs.DeepseekOcr2TextConfig(**shapes, mlp_layer_types=kinds))


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Numbers of any kind, so long as none is infinite; whole numbers count positions."""
    for t in [*module.parameters(), *module.buffers()]:
        if not t.is_floating_point():
            t.copy_(torch.arange(t.numel()).view_as(t))
        elif t.ndim < 2:
            t.fill_(0.5)
        else:
            t.uniform_(-0.02, 0.02)


def free_memory() -> float:
    """Bytes that a program could have; where the system does not say, no limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")
