"""What a model costs, from its configuration alone: parameters, cache, memory.

Lesson   lessons/11_the_real_weights.ipynb
Tests    tests/test_cost.py

"Activated" follows the counting rule that gives the published figures (1.0, 2.8 and 4.5 B): the language model with
only the experts a token visits, its output head but not its input embedding (which is a look-up, not a product), the
vision tower without the pooling head it never runs, and the projector.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from minivl2.config import Config, LanguageConfig
from minivl2.model import build
from minivl2.names import unused_names
from minivl2.visual_tokens import count

RULE = ("activated: the chosen and shared experts only, without the input embedding (a look-up) and the unused "
        "pooling head, with the output head")


@dataclass(frozen=True)
class Part:
    name: str
    total: int
    activated: int


def parts(config: Config) -> list[Part]:
    """Parameters of each part of the model, in the order data flows."""
    with torch.device("meta"):
        model = build(config)
    lang = config.language
    experts = {"gate and shared experts": 0, "routed experts": 0, "dense MLP": 0}
    for i, layer in enumerate(model.decoder.layers):
        if lang.is_moe(i):
            routed = size(layer.mlp.experts)
            experts["routed experts"] += routed
            experts["gate and shared experts"] += size(layer.mlp) - routed
        else:
            experts["dense MLP"] += size(layer.mlp)
    attention = sum(size(layer.attn) for layer in model.decoder.layers)
    norms = size(model.decoder.norm) + sum(size(layer.attn_norm) + size(layer.mlp_norm) for layer in model.decoder.layers)
    visited = experts["routed experts"] * lang.num_experts_per_tok // lang.n_routed_experts if lang.n_routed_experts else 0
    pooling = sum(prod(shape) for shape in unused_names(config.vision).values())
    always = [
        ("vision tower", size(model.vision)),
        ("projector", size(model.projector)),
        ("newline and separator", model.image_newline.numel() + model.view_separator.numel()),
        ("attention", attention),
        ("dense MLP", experts["dense MLP"]),
        ("gate and shared experts", experts["gate and shared experts"]),
        ("norms", norms),
        ("output head", size(model.decoder.head)),
    ]
    return [
        *(Part(name, n, n) for name, n in always),
        Part("routed experts", experts["routed experts"], visited),
        Part("input embedding", size(model.decoder.embed), 0),
        Part("pooling head (unused)", pooling, 0),
    ]


def size(module: torch.nn.Module) -> int:
    """Numbers in a module, the gate's correction bias among them."""
    return sum(t.numel() for t in module.state_dict().values())


def cache_numbers(lang: LanguageConfig) -> int:
    """Numbers remembered per token and layer."""
    if lang.use_mla:
        return lang.kv_lora_rank + lang.qk_rope_head_dim
    return 2 * lang.num_key_value_heads * lang.head_dim


def multi_head_numbers(lang: LanguageConfig) -> int:
    """What multi-head attention with the heads of this latent attention would remember per token and layer."""
    return lang.num_attention_heads * (lang.qk_nope_head_dim + lang.v_head_dim)


def report(name: str, config: Config) -> str:
    """The table that `minivl2 inspect` prints."""
    lang = config.language
    rows = parts(config)
    total, activated = sum(p.total for p in rows), sum(p.activated for p in rows)
    lines = [name, "", f"{'parameters':<26}{'total':>17}{'activated':>17}"]
    lines += [f"  {p.name:<24}{p.total:>17,}{p.activated:>17,}" for p in rows]
    lines += [f"  {'all':<24}{total:>17,}{activated:>17,}",
              f"  {'':<24}{readable(total):>17}{readable(activated):>17}", f"  ({RULE})", ""]

    kind = "latent" if lang.use_mla else "multi-head"
    numbers, layers, context = cache_numbers(lang), lang.num_hidden_layers, lang.max_position_embeddings
    per_token = 2 * numbers * layers
    lines.append(f"cache: {numbers:,} numbers a token and layer ({kind} attention), {per_token:,} bytes a token in bfloat16")
    if lang.use_mla:
        lines.append(f"       multi-head attention with these heads: {multi_head_numbers(lang):,} numbers, "
                     f"{multi_head_numbers(lang) / numbers:.1f} times as many")
    tokens = [count((1, 1), config.tokens_per_side),
              max(count((w // config.vision.image_size, h // config.vision.image_size), config.tokens_per_side)
                  for w, h in config.candidate_resolutions)]
    lines += [f"image: {tokens[0]:,} to {tokens[1]:,} tokens, of a context of {context:,}", ""]
    lines.append(f"{'memory to run it':<26}{'weights':>12}{'full cache':>12}{'together':>12}")
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        weights, cache = total * width, numbers * layers * context * width
        lines.append(f"  {dtype:<24}" + "".join(f"{human(n):>12}" for n in (weights, cache, weights + cache)))
    return "\n".join(lines)


def readable(parameters: int) -> str:
    return f"{parameters / 1e9:.4f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def human(nbytes: int) -> str:
    if nbytes < 1e6:
        return f"{nbytes / 1e3:.0f} kB"
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
