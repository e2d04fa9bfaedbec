"""The published names of the model's tensors, and what a checkpoint must hold.

Lesson   lessons/11_the_real_weights.ipynb
Tests    tests/test_names.py, tests/test_weights.py

The published checkpoints and this code call the same matrix by different names; one table translates. A checkpoint
whose tensors are not exactly the expected ones is refused: an expert that silently stays random still writes sentences.
"""

import difflib
import re

from minivl2.config import VisionConfig
from minivl2.model import DeepSeekVL2

# ours -> published, applied from top to bottom
NAMES = (
    (r"^vision\.patch_embed\.", "vision.patch_embed.proj."),
    (r"^view_separator$", "view_seperator"),
    (r"^decoder\.head\.", "language.lm_head."),
    (r"^decoder\.embed\.", "language.model.embed_tokens."),
    (r"^decoder\.(layers\.\d+)\.attn_norm\.", r"language.model.\1.input_layernorm."),
    (r"^decoder\.(layers\.\d+)\.mlp_norm\.", r"language.model.\1.post_attention_layernorm."),
    (r"^decoder\.(layers\.\d+)\.attn\.", r"language.model.\1.self_attn."),
    (r"^decoder\.", "language.model."),
    (r"\.self_attn\.q_down\.", ".self_attn.q_a_proj."),
    (r"\.self_attn\.q_norm\.", ".self_attn.q_a_layernorm."),
    (r"\.self_attn\.q_up\.", ".self_attn.q_b_proj."),
    (r"\.self_attn\.kv_down\.", ".self_attn.kv_a_proj_with_mqa."),
    (r"\.self_attn\.kv_norm\.", ".self_attn.kv_a_layernorm."),
    (r"\.self_attn\.kv_up\.", ".self_attn.kv_b_proj."),
    (r"\.mlp\.shared\.", ".mlp.shared_experts."),
    (r"\.mlp\.gate\.bias$", ".mlp.gate.e_score_correction_bias"),
)
UNUSED = "vision.attn_pool."            # SigLIP's pooling head: in every published checkpoint, run by none


def published_name(ours: str) -> str:
    for pattern, replacement in NAMES:
        ours = re.sub(pattern, replacement, ours)
    return ours


def published_names(model: DeepSeekVL2) -> dict[str, tuple[int, ...]]:
    """Every tensor that a published checkpoint of this model has, with its shape."""
    names = {published_name(ours): tuple(t.shape) for ours, t in model.state_dict().items()}
    return names | unused_names(model.config.vision)


def unused_names(vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    """The pooling head that a vision tower with global_pool "map" carries. A checkpoint may leave it out."""
    if vision.global_pool != "map":
        return {}
    W, inner = vision.width, vision.mlp_width
    linears = {"q": (W, W), "kv": (2 * W, W), "proj": (W, W), "mlp.fc1": (inner, W), "mlp.fc2": (W, inner)}
    shapes = {"latent": (1, 1, W), "norm.weight": (W,), "norm.bias": (W,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {UNUSED + name: shape for name, shape in shapes.items()}


def mismatches(wanted: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]]) -> list[str]:
    """What differs, a line each. The unused pooling head may be there or not; nothing else may be missing or extra."""
    extra = sorted(name for name in got.keys() - wanted.keys() if not name.startswith(UNUSED))
    problems = []
    for name in sorted(wanted.keys() - got.keys()):
        if not name.startswith(UNUSED):
            problems.append(f"{name}: missing{hint(name, extra)}")
    problems += [f"{name}: not a tensor of this model" for name in extra]
    problems += [
        f"{name}: shape {list(got[name])}, but the configuration asks for {list(shape)}"
        for name, shape in wanted.items() if name in got and got[name] != shape
    ]
    return problems


def hint(name: str, extra: list[str]) -> str:
    """Which of the tensors that nobody asked for it may be, under another spelling."""
    alike = difflib.get_close_matches(name, extra, n=1, cutoff=0.8) if len(extra) < 100 else []
    return f" (is it the one called {alike[0]}?)" if alike else ""
