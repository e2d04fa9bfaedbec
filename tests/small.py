"""Models small enough to be computed by hand, with random weights everywhere: a norm whose weight is all ones, or a bias
that is all zeros, would hide that it was forgotten."""

import dataclasses

import torch
from PIL import Image
from tokenizers import Tokenizer

from minivl2.config import Config, LanguageConfig, ProjectorConfig, VisionConfig, paper_candidates
from minivl2.processor import Processor, ProcessorConfig

TILE = 42       # pixels: 3 x 3 patches of 14, padded to 4 x 4, squeezed to 2 x 2 visual tokens

LANGUAGE = LanguageConfig(
    vocab_size=448, hidden_size=16, intermediate_size=24, num_hidden_layers=3, max_position_embeddings=512,
    num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=6, q_lora_rank=None,
    qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=5, rope_theta=50.0,
    n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=6, first_k_dense_replace=1,
    n_group=1, topk_group=1, aux_loss_alpha=0.5,
)
MULTI_HEAD = {"use_mla": False, "num_attention_heads": 4, "num_key_value_heads": 2}
QUERY_LATENT = {"q_lora_rank": 5}
SIGMOID = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.0}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5}


def language(**changes):
    return dataclasses.replace(LANGUAGE, **changes)


def config(**language_changes):
    lang = language(**language_changes)
    return Config(
        VisionConfig(image_size=TILE, patch_size=14, width=8, layers=2, heads=2, mlp_ratio=1.6),
        ProjectorConfig(input_dim=8, n_embed=lang.hidden_size), lang, paper_candidates(TILE))


def randomised(module, seed=0, dtype=torch.float64):
    """Every weight drawn anew: matrices so that numbers keep their size, norms around 1, the gate's bias around 0."""
    random = torch.Generator().manual_seed(seed)
    for name, t in module.state_dict().items():
        values = torch.randn(t.shape, generator=random, dtype=torch.float64)
        if t.ndim > 1:
            values = values * 2 / t[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.5 * values
        else:
            values = values * 0.3
        with torch.no_grad():
            t.copy_(values)
    return module.to(dtype).eval()


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def picture(width, height, seed=0):
    """Noise, so that every pixel can be told from every other."""
    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def processor(goldens, cfg=None):
    """The reference checkpoints' tokenizer, with tiles of 42 pixels."""
    tokenizer = Tokenizer.from_file(str(goldens / "mla" / "tokenizer.json"))
    return Processor(tokenizer, ProcessorConfig.of(cfg or config()))


def ask(text):
    return [{"role": "user", "content": text}]


def answered(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
