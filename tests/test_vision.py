"""The vision tower, against loops and against transformers' SigLIP."""

import dataclasses

import pytest
import reference
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minivl2.config import VisionConfig
from minivl2.vision import MLP, Block, SelfAttention, VisionTower

TINY = VisionConfig(image_size=13, patch_size=4, width=6, layers=2, heads=2, mlp_ratio=1.5)     # 3 x 3, one pixel dropped
SEEDS = st.integers(0, 99)


@torch.no_grad()
@settings(max_examples=8)
@given(st.sampled_from([1, 2, 3]), st.integers(4, 9), SEEDS)
def test_the_tower_is_the_papers_sums(heads, image_size, seed):
    cfg = dataclasses.replace(TINY, image_size=image_size, patch_size=3, heads=heads)
    tower = small.randomised(VisionTower(cfg), seed)
    tiles = small.numbers(2, 3, image_size, image_size, seed=seed)
    for tile, got in zip(tiles, tower(tiles), strict=True):
        assert_close(got, reference.vision_tower(tile, tower.state_dict(), 3, heads, cfg.layers))


@given(st.sampled_from([1, 2, 3]), st.booleans(), SEEDS)
def test_attention_and_blocks_are_the_papers_sums(heads, learning, seed):
    """Each by itself, so that a mistake is found where it is; and with gradients, for which the sums are taken otherwise."""
    cfg = dataclasses.replace(TINY, heads=heads)
    x = small.numbers(1, 4, 6, seed=seed)
    attention, block = small.randomised(SelfAttention(cfg), seed), small.randomised(Block(cfg), seed)
    with torch.set_grad_enabled(learning):
        assert_close(attention(x)[0], reference.vision_attention(x[0], attention.state_dict(), heads))
        assert_close(block(x)[0], reference.vision_block(x[0], block.state_dict(), heads))


@torch.no_grad()
def test_the_gelu_is_the_tanh_one():
    """It differs from the projector's by 5e-4 at most."""
    mlp = MLP(dataclasses.replace(TINY, width=1, heads=1, mlp_ratio=1.0)).double()
    for p, value in zip(mlp.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
        p.fill_(value)
    x = torch.tensor([2.0], dtype=torch.float64)
    assert mlp(x).item() == pytest.approx(reference.gelu_tanh(2.0), abs=1e-12)
    assert mlp(x).item() != pytest.approx(reference.gelu_exact(2.0), abs=1e-6)


def test_the_mlp_is_as_wide_as_the_configuration_says_and_has_biases():
    mlp = MLP(TINY)
    assert {n: tuple(p.shape) for n, p in mlp.named_parameters()} == {
        "fc1.weight": (9, 6), "fc1.bias": (9,), "fc2.weight": (6, 9), "fc2.bias": (6,)}


@torch.no_grad()
def test_small_differences_between_patches_survive_the_norms():
    """eps is 1e-6 and not torch's 1e-5: it matters where a patch is all of one colour."""
    tower = small.randomised(VisionTower(TINY))
    tower.patch_embed.weight.mul_(1e-3), tower.patch_embed.bias.mul_(1e-3), tower.pos_embed.mul_(1e-3)
    tile = small.numbers(3, 13, 13)
    assert_close(tower(tile[None])[0], reference.vision_tower(tile, tower.state_dict(), 4, 2, 2))


@torch.no_grad()
def test_every_tile_is_seen_by_itself():
    tower, tiles = small.randomised(VisionTower(TINY)), small.numbers(3, 3, 13, 13)
    assert_close(torch.cat([tower(tile[None]) for tile in tiles]), tower(tiles))


@torch.no_grad()
def test_pixels_that_fill_no_patch_are_never_seen():
    tower, tiles = small.randomised(VisionTower(TINY)), small.numbers(1, 3, 13, 13)
    other = tiles.clone()
    other[..., 12:, :] = other[..., 12:] = 9
    assert torch.equal(tower(other), tower(tiles))


def test_the_published_tower_sees_27_by_27_patches():
    with torch.device("meta"):
        tower = VisionTower(VisionConfig())
    assert VisionConfig().grid == 27 and VisionConfig().mlp_width == 4304
    assert tower.pos_embed.shape == (1, 729, 1152) and len(tower.blocks) == 27
    assert not any("pool" in name for name in tower.state_dict())       # carried along elsewhere, never run


@torch.no_grad()
def test_the_tower_equals_transformers():
    pytest.importorskip("transformers", reason="compares with a maintained implementation")
    from transformers.models.siglip import modeling_siglip as theirs
    ours = small.randomised(VisionTower(TINY), dtype=torch.float32)
    config = theirs.SiglipVisionConfig(
        hidden_size=6, intermediate_size=TINY.mlp_width, num_hidden_layers=2, num_attention_heads=2, image_size=13,
        patch_size=4, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, vision_use_head=False)
    model = theirs.SiglipVisionModel(config).eval()
    w = {}
    for name, tensor in ours.state_dict().items():      # theirs keeps queries, keys and values apart
        name = name.replace("blocks.", "encoder.layers.").replace("patch_embed.", "embeddings.patch_embedding.")
        name = name.replace(".norm1.", ".layer_norm1.").replace(".norm2.", ".layer_norm2.")
        name = name.replace(".attn.proj.", ".self_attn.out_proj.")
        if ".attn.qkv." in name:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                w[name.replace(".attn.qkv.", f".self_attn.{letter}_proj.")] = third
        elif name == "pos_embed":
            w["embeddings.position_embedding.weight"] = tensor[0]
        else:
            w["post_layernorm" + name[4:] if name.startswith("norm.") else name] = tensor
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in model.state_dict()) else ""
    model.load_state_dict({prefix + name: tensor for name, tensor in w.items()}, strict=True)
    tiles = small.numbers(2, 3, 13, 13, dtype=torch.float32)
    assert_close(ours(tiles), model(pixel_values=tiles).last_hidden_state, atol=1e-5, rtol=1e-5)
