"""Names and shapes: ours under their published names, and what a checkpoint lacks. test_weights.py has the whole lists."""

import json
from pathlib import Path

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivl2.config import Config
from minivl2.model import DeepSeekVL2
from minivl2.names import UNUSED, mismatches, published_name

PAIRS = {
    "image_newline": "image_newline",
    "view_separator": "view_seperator",
    "vision.pos_embed": "vision.pos_embed",
    "vision.patch_embed.bias": "vision.patch_embed.proj.bias",
    "vision.norm.weight": "vision.norm.weight",
    "vision.blocks.3.attn.proj.weight": "vision.blocks.3.attn.proj.weight",
    "vision.blocks.11.norm1.bias": "vision.blocks.11.norm1.bias",
    "projector.layers.0.weight": "projector.layers.0.weight",
    "decoder.embed.weight": "language.model.embed_tokens.weight",
    "decoder.head.weight": "language.lm_head.weight",
    "decoder.norm.weight": "language.model.norm.weight",
    "decoder.layers.0.attn_norm.weight": "language.model.layers.0.input_layernorm.weight",
    "decoder.layers.11.mlp_norm.weight": "language.model.layers.11.post_attention_layernorm.weight",
    "decoder.layers.2.attn.q_proj.weight": "language.model.layers.2.self_attn.q_proj.weight",
    "decoder.layers.2.attn.q_down.weight": "language.model.layers.2.self_attn.q_a_proj.weight",
    "decoder.layers.2.attn.q_norm.weight": "language.model.layers.2.self_attn.q_a_layernorm.weight",
    "decoder.layers.2.attn.q_up.weight": "language.model.layers.2.self_attn.q_b_proj.weight",
    "decoder.layers.2.attn.kv_down.weight": "language.model.layers.2.self_attn.kv_a_proj_with_mqa.weight",
    "decoder.layers.2.attn.kv_norm.weight": "language.model.layers.2.self_attn.kv_a_layernorm.weight",
    "decoder.layers.26.attn.kv_up.weight": "language.model.layers.26.self_attn.kv_b_proj.weight",
    "decoder.layers.2.attn.o_proj.weight": "language.model.layers.2.self_attn.o_proj.weight",
    "decoder.layers.0.mlp.gate_proj.weight": "language.model.layers.0.mlp.gate_proj.weight",
    "decoder.layers.1.mlp.gate.weight": "language.model.layers.1.mlp.gate.weight",
    "decoder.layers.1.mlp.gate.bias": "language.model.layers.1.mlp.gate.e_score_correction_bias",
    "decoder.layers.1.mlp.experts.63.up_proj.weight": "language.model.layers.1.mlp.experts.63.up_proj.weight",
    "decoder.layers.1.mlp.shared.down_proj.weight": "language.model.layers.1.mlp.shared_experts.down_proj.weight",
}


@pytest.mark.parametrize("ours", PAIRS)
def test_a_tensor_has_its_published_name(ours):
    assert published_name(ours) == PAIRS[ours]


def test_no_two_tensors_have_one_name():
    model = DeepSeekVL2(small.config(**small.SIGMOID, **small.QUERY_LATENT))
    names = [published_name(ours) for ours in model.state_dict()]
    assert len(set(names)) == len(names)


def test_tiny_has_the_published_names_and_no_others():
    published = json.loads((Path(__file__).parent / "manifests.json").read_text(encoding="utf-8"))["tiny"]
    with torch.device("meta"):
        model = DeepSeekVL2(Config.from_dict(published["config"]))
    alike = {name.rpartition(".")[2] for name in published["tensors"]}
    for ours in model.state_dict():
        assert published_name(ours).rpartition(".")[2] in alike and "decoder" not in published_name(ours)


# ------------------------------------------------------------------------------------------ mismatches

WANTED = {"a.weight": (2, 3), "b.bias": (4,), "language.experts.1.up": (5, 6), UNUSED + "latent": (1, 1, 8)}


def test_the_same_names_and_shapes_are_no_problem():
    assert mismatches(WANTED, dict(reversed(WANTED.items()))) == []


@pytest.mark.parametrize("name", [name for name in WANTED if not name.startswith(UNUSED)])
def test_one_missing_tensor_is_one_line(name):
    assert mismatches(WANTED, {n: shape for n, shape in WANTED.items() if n != name}) == [f"{name}: missing"]


def test_one_tensor_too_many_is_one_line():
    assert mismatches(WANTED, WANTED | {"c": (2, 3)}) == ["c: not a tensor of this model"]


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (2, 4), ()])
def test_another_shape_is_one_line_even_with_as_many_numbers(shape):
    assert mismatches(WANTED, WANTED | {"a.weight": shape}) == [
        f"a.weight: shape {list(shape)}, but the configuration asks for [2, 3]"]


def test_the_unused_pooling_head_may_be_missing_or_there_but_not_of_another_shape():
    plain = {n: shape for n, shape in WANTED.items() if not n.startswith(UNUSED)}
    assert mismatches(WANTED, plain) == mismatches(plain, WANTED) == []
    assert mismatches(WANTED, WANTED | {UNUSED + "latent": (1, 1, 9)}) == [
        f"{UNUSED}latent: shape [1, 1, 9], but the configuration asks for [1, 1, 8]"]


def test_a_misspelled_name_is_recognised():
    got = {("language.experts.1.upp" if n == "language.experts.1.up" else n): s for n, s in WANTED.items()}
    assert mismatches(WANTED, got) == [
        "language.experts.1.up: missing (is it the one called language.experts.1.upp?)",
        "language.experts.1.upp: not a tensor of this model"]


@given(st.sets(st.sampled_from("abcdefgh")), st.sets(st.sampled_from("abcdefgh")), st.sets(st.sampled_from("abcdefgh")))
def test_missing_ones_first_then_extra_ones_then_shapes(wanted, got, reshaped):
    lines = mismatches(dict.fromkeys(sorted(wanted), (1,)), {n: (2,) if n in reshaped else (1,) for n in got})
    assert [line.partition(":")[0] for line in lines] == [
        *sorted(wanted - got), *sorted(got - wanted), *sorted(wanted & got & reshaped)]
