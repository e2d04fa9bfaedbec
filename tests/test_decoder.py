"""The decoder: who sees whom, where tokens stand, and the sum of its layers."""

import dataclasses

import pytest
import reference
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minivl2.cache import Cache
from minivl2.decoder import Decoder, check_length, positions, visible

KINDS = {
    "multi-head": small.MULTI_HEAD,
    "latent": {},
    "query latent, groups": small.QUERY_LATENT | small.GROUPS,
    "sigmoid": small.SIGMOID,
    "dense": {"n_routed_experts": None},
    "every second layer has experts": {"moe_layer_freq": 2, "first_k_dense_replace": 0},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
SEEDS = st.integers(0, 99)


def padded(*paddings, tokens):
    return torch.tensor([[t >= padding for t in range(tokens)] for padding in paddings])


# ------------------------------------------------------------------------------------------ positions and mask


@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(5, 8))
def test_positions_count_real_tokens_only(paddings, tokens):
    for row, padding in zip(positions(padded(*paddings, tokens=tokens)), paddings, strict=True):
        assert row.tolist() == [0] * padding + list(range(tokens - padding))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(5, 8), st.integers(0, 4))
def test_a_token_sees_itself_and_what_is_real_before_it(paddings, tokens, start):
    real = padded(*paddings, tokens=tokens)
    assert visible(real, start)[:, 0].tolist() == [rows[start:] for rows in reference.seen(real)]


def test_the_mask_by_hand():
    """Two tokens after one of padding: padding is seen by nobody but itself, and nobody sees ahead."""
    mask = visible(torch.tensor([[False, True, True]]), start=0)
    assert mask.dtype == torch.bool and mask.int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]]


def test_a_context_that_is_too_long_is_an_error_that_says_both_lengths():
    check_length(512, 512)
    with pytest.raises(ValueError, match="513 tokens do not fit the model's context of 512"):
        check_length(513, 512)
    decoder = Decoder(small.language(max_position_embeddings=4))
    with pytest.raises(ValueError, match="5 tokens .* 4"):
        decoder(torch.zeros(1, 5, 16), torch.ones(1, 5, dtype=torch.bool))
    cache = Cache(3, 10)
    decoder(torch.zeros(1, 3, 16), torch.ones(1, 3, dtype=torch.bool), cache)
    with pytest.raises(ValueError, match="5 tokens .* 4"):     # three remembered and two new ones
        decoder(torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool), cache)


# ------------------------------------------------------------------------------------------ the whole decoder


@torch.no_grad()
@each_kind
@settings(max_examples=4)
@given(st.integers(0, 3), SEEDS)
def test_the_decoder_is_the_papers_sums(kind, padding, seed):
    cfg = small.language(**KINDS[kind])
    decoder = small.randomised(Decoder(cfg), seed)
    x, real = small.numbers(2, 5, 16, seed=seed), padded(0, padding, tokens=5)
    got, _ = decoder(x, real)
    assert_close(got, reference.decoder(x, decoder.state_dict(), cfg, real))


@torch.no_grad()
@each_kind
@settings(max_examples=8)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(0, 4), SEEDS)
def test_reading_in_chunks_equals_one_pass_for_padded_batches_too(kind, chunks, padding, seed):
    """Padding may be longer than the first chunk: then a chunk holds no real token of that row."""
    cfg, T = small.language(**KINDS[kind]), sum(chunks)
    decoder = small.randomised(Decoder(cfg), seed)
    x, real = small.numbers(2, T, 16, seed=seed), padded(0, min(padding, T - 1), tokens=T)
    cache = Cache(cfg.num_hidden_layers, T)
    parts = [decoder(*part, cache)[0] for part in zip(x.split(chunks, 1), real.split(chunks, 1), strict=True)]
    assert_close(torch.cat(parts, dim=1)[real], decoder(x, real)[0][real])
    assert cache.length == T


@torch.no_grad()
@each_kind
@given(st.integers(1, 5), SEEDS)
def test_padding_changes_nothing(kind, padding, seed):
    decoder = small.randomised(Decoder(small.language(**KINDS[kind])), seed)
    x = small.numbers(1, 4, 16, seed=seed)
    alone, _ = decoder(x, padded(0, tokens=4))
    rubbish = 100 * small.numbers(1, padding, 16, seed=seed + 1)
    beside, _ = decoder(torch.cat((rubbish, x), dim=1), padded(padding, tokens=padding + 4))
    assert_close(beside[:, padding:], alone)
    assert beside.isfinite().all()      # padding thinks too; a NaN of it would spoil the batch's gradients


@torch.no_grad()
@each_kind
@given(st.integers(1, 4), SEEDS)
def test_no_token_knows_what_comes_after_it(kind, t, seed):
    decoder = small.randomised(Decoder(small.language(**KINDS[kind])), seed)
    x = small.numbers(1, 5, 16, seed=seed)
    other = x.clone()
    other[:, t:] += 1
    real = padded(0, tokens=5)
    before, after = decoder(x, real)[0], decoder(other, real)[0]
    assert_close(before[:, :t], after[:, :t])
    assert not torch.allclose(before[:, t], after[:, t])


@torch.no_grad()
def test_the_routing_of_every_layer_with_experts_is_reported():
    decoder = small.randomised(Decoder(small.language(num_hidden_layers=4, first_k_dense_replace=2)))
    _, routings = decoder(small.numbers(2, 3, 16), padded(0, 0, tokens=3))
    assert len(routings) == 2 and all(r.experts.shape == (6, 2) for r in routings)


# ------------------------------------------------------------------------------------------ transformers

TO_TRANSFORMERS = (
    ("embed.", "embed_tokens."), (".attn_norm.", ".input_layernorm."), (".mlp_norm.", ".post_attention_layernorm."),
    (".attn.", ".self_attn."), (".shared.", ".shared_experts."), (".kv_down.", ".kv_a_proj_with_mqa."),
    (".kv_norm.", ".kv_a_layernorm."), (".kv_up.", ".kv_b_proj."), (".q_down.", ".q_a_proj."),
    (".q_norm.", ".q_a_layernorm."), (".q_up.", ".q_b_proj."))


def to_transformers(w, cfg):
    theirs = {}
    for name, tensor in w.items():
        for ours, other in TO_TRANSFORMERS:
            name = name.replace(ours, other)
        if ".experts." not in name and not name.startswith("head."):
            theirs[name] = tensor
    for i in range(cfg.num_hidden_layers):          # their experts are two stacks of matrices, gate above up
        if cfg.is_moe(i):
            one = [{n: w[f"layers.{i}.mlp.experts.{e}.{n}.weight"] for n in ("gate_proj", "up_proj", "down_proj")}
                   for e in range(cfg.n_routed_experts)]
            theirs[f"layers.{i}.mlp.experts.down_proj"] = torch.stack([e["down_proj"] for e in one])
            theirs[f"layers.{i}.mlp.experts.gate_up_proj"] = torch.stack(
                [torch.cat((e["gate_proj"], e["up_proj"])) for e in one])
    return theirs


def their_decoder(cfg):
    pytest.importorskip("transformers", reason="compares with a maintained implementation")
    kept = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
    for ours_alone in ("rope_theta", "rope_scaling", "use_mla", "moe_layer_freq", "seq_aux", "aux_loss_alpha",
                       "scoring_func", "norm_topk_prob", "first_k_dense_replace"):
        kept.pop(ours_alone)
    kept |= {"rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
             "attn_implementation": "eager", "experts_implementation": "eager"}
    if cfg.use_mla:
        from transformers.models.deepseek_v2 import modeling_deepseek_v2 as theirs
        config = theirs.DeepseekV2Config(**kept, first_k_dense_replace=cfg.first_k_dense_replace)
        config.head_dim = cfg.qk_rope_head_dim
        return theirs.DeepseekV2Model(config)
    from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2 as theirs
    for latent in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        kept.pop(latent)
    kinds = ["sparse" if cfg.is_moe(i) else "dense" for i in range(cfg.num_hidden_layers)]
    return theirs.DeepseekOcr2TextModel(theirs.DeepseekOcr2TextConfig(**kept, mlp_layer_types=kinds))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["multi-head", "latent", "query latent, groups"])
def test_the_decoder_equals_transformers(kind):
    cfg = small.language(**KINDS[kind])
    ours, theirs = small.randomised(Decoder(cfg), dtype=torch.float32), their_decoder(cfg).eval()
    theirs.load_state_dict(to_transformers(ours.state_dict(), cfg), strict=True)
    ids, real = torch.randint(0, cfg.vocab_size, (2, 7)), padded(0, 3, tokens=7)
    want = theirs(input_ids=ids, attention_mask=real.long(), position_ids=positions(real)).last_hidden_state
    got, _ = ours(ours.embed(ids), real)
    assert_close(got[real], want[real], atol=1e-5, rtol=1e-5)
