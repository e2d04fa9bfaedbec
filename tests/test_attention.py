"""Multi-head and latent attention, against loops over the papers' equations and against transformers."""

import pytest
import reference
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from minivl2 import attention
from minivl2.attention import LatentAttention, MultiHeadAttention, attend, by_hand, in_pieces
from minivl2.cache import LayerCache
from minivl2.config import Config

# left padding of each of two sequences of five tokens
PADDINGS = st.tuples(st.integers(0, 3), st.integers(0, 3))
SEEDS = st.integers(0, 99)

multi_heads = st.builds(
    lambda key_heads, share, d: small.language(
        use_mla=False, num_attention_heads=key_heads * share, num_key_value_heads=key_heads,
        hidden_size=key_heads * share * d),
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 4, 6]))

# values wider than keys, and keys wider than values: the narrower are padded for the fused kernel
latents = st.builds(
    lambda heads, latent, query_latent, content, rotary, value: small.language(
        num_attention_heads=heads, kv_lora_rank=latent, q_lora_rank=query_latent,
        qk_nope_head_dim=content, qk_rope_head_dim=rotary, v_head_dim=value),
    st.integers(1, 3), st.integers(1, 7), st.sampled_from([None, 5]), st.integers(1, 5), st.sampled_from([2, 4]),
    st.integers(1, 9))


class Setting:
    """An attention, two padded sequences, and what surrounds them: computed by the reference, not by minivl2."""

    def __init__(self, cfg, paddings=(0, 2), tokens=5, seed=0):
        kind = LatentAttention if cfg.use_mla else MultiHeadAttention
        self.cfg, self.attention = cfg, small.randomised(kind(cfg), seed)
        self.x = small.numbers(2, tokens, cfg.hidden_size, seed=seed + 1)
        self.real = torch.tensor([[t >= padding for t in range(tokens)] for padding in paddings])
        self.positions = reference.positions(self.real)
        self.may_see = reference.seen(self.real)
        self.seen = torch.tensor(self.may_see)[:, None]
        self.width = cfg.qk_rope_head_dim if cfg.use_mla else cfg.head_dim

    def whole(self):
        return self.attention(self.x, self.turn(self.positions), self.seen)

    def turn(self, positions):
        return reference.cos_and_sin(positions, self.width, self.cfg.rope_theta)

    def in_chunks(self, sizes, cache):
        parts, start = [], 0
        for n in sizes:
            new = slice(start, start + n)
            seen = self.seen[:, :, new, : new.stop]
            parts.append(self.attention(self.x[:, new], self.turn(self.positions[:, new]), seen, cache))
            start += n
        return torch.cat(parts, dim=1)

    def expected(self):
        cfg, w = self.cfg, self.attention.state_dict()
        if not cfg.use_mla:
            return reference.multi_head_attention(
                self.x, w, cfg.num_attention_heads, cfg.num_key_value_heads, self.positions, self.may_see, cfg.rope_theta)
        return reference.latent_attention(
            self.x, w, cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_nope_head_dim, cfg.qk_rope_head_dim,
            cfg.v_head_dim, self.positions, self.may_see, cfg.rope_theta, cfg.rms_norm_eps)


@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans(), st.sampled_from([None, 0.7]), SEEDS)
def test_to_attend_is_softmax_of_q_k_times_v(width, value_width, masked, learning, scale, seed):
    """Values may be narrower or wider than keys; a mask and a scale may be given or not; both kernels say the same."""
    q, k = (small.numbers(2, 3, n, width, seed=seed + n) for n in (4, 5))
    v = small.numbers(2, 3, 5, value_width, seed=seed)
    seen = torch.rand(2, 1, 4, 5) < 0.6
    seen[..., 0] = True     # nobody looks at nothing
    got = attend(q.requires_grad_(learning), k, v, seen if masked else None, scale)
    for b in range(2):
        for h in range(3):
            for t in range(4):
                may_see = seen[b, 0, t] if masked else [True] * 5
                want = reference.attend(q[b, h, t].detach(), k[b, h], v[b, h], scale or width**-0.5, may_see)
                assert_close(got[b, h, t].detach(), want)


@pytest.mark.parametrize("masked", [False, True])
def test_to_attend_teaches_queries_keys_and_values_and_changes_none(masked):
    q, k, v = (small.numbers(1, 2, n, 3, seed=n).requires_grad_() for n in (2, 4, 4))
    seen = torch.tensor([[True, False, True, False], [True, True, True, False]])[None, None]
    before = [x.detach().clone() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, seen if masked else None), (q, k, v))
    with torch.no_grad():       # the other kernel
        attend(q, k, v, seen if masked else None)
    assert all(map(torch.equal, (q, k, v), before))


@pytest.mark.parametrize("learning", [False, True])
def test_to_attend_answers_in_the_type_of_the_query(learning):
    q, k, v = (small.numbers(1, 2, 3, 4, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    got = attend(q.requires_grad_(learning), k, v, torch.ones(1, 1, 3, 3, dtype=torch.bool).tril())
    assert got.dtype == torch.bfloat16


@given(st.integers(1, 7), st.integers(0, 4), st.integers(1, 5), st.sampled_from([1, 9, 30, 1000]), st.booleans(), SEEDS)
def test_attending_in_pieces_is_attending_at_once(new, before, value_width, piece, masked, seed):
    """Pieces of one query up to all, after earlier tokens or none, with padding, out of a room that is not full."""
    q, room = small.numbers(2, 3, new, 4, seed=seed), small.numbers(2, 3, new + before + 2, 4, seed=seed + 1)
    k, v = room[:, :, :-2], small.numbers(2, 3, new + before, value_width, seed=seed + 2)
    padding = torch.tensor([[[0]], [[before]]])
    key, query = torch.arange(new + before), torch.arange(before, new + before)[:, None]
    seen = ((key <= query) & (key >= padding) | (key == query))[:, None] if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PIECE", piece)
        assert_close(in_pieces(q, k, v, seen, 0.7), by_hand(q, k, v, seen, 0.7))


def test_a_cpu_answers_in_bfloat16_in_pieces_and_learns_by_hand(monkeypatch):
    ways = []
    for name in ("by_hand", "fused", "in_pieces"):
        way = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *a, way=way, name=name: ways.append(name) or way(*a))
    q, k, v = (small.numbers(1, 1, 3, 4, seed=i, dtype=torch.bfloat16) for i in range(3))
    answers = [attend(q, k, v), attend(q.requires_grad_(), k, v).detach(), attend(q.detach().float(), k.float(), v.float())]
    assert ways == ["in_pieces", "by_hand", "fused"]
    for answer in answers[:2]:
        assert_close(answer.float(), answers[2], atol=0.02, rtol=0.02)


@given(multi_heads, PADDINGS, st.booleans(), SEEDS)
def test_multi_head_attention_is_the_papers_sums(cfg, paddings, learning, seed):
    s = Setting(cfg, paddings, seed=seed)
    with torch.set_grad_enabled(learning):      # a CPU that learns sums by hand, one that answers with a fused kernel
        assert_close(s.whole(), s.expected())


@given(latents, PADDINGS, st.booleans(), SEEDS)
def test_latent_attention_is_the_papers_sums(cfg, paddings, learning, seed):
    s = Setting(cfg, paddings, seed=seed)
    with torch.set_grad_enabled(learning):      # a CPU that learns sums by hand, one that answers with a fused kernel
        assert_close(s.whole(), s.expected())


@torch.no_grad()
@given(latents, PADDINGS, SEEDS)
def test_absorbed_decoding_token_by_token_is_the_papers_sums_too(cfg, paddings, seed):
    s = Setting(cfg, paddings, seed=seed)
    assert_close(s.in_chunks([1] * 5, LayerCache(5)), s.expected())     # one new token at a time is absorbed


def remembered(cfg, T, S, seed=0):
    """Queries of the last T of S tokens, all latents and rotary keys, and a mask with padding in one row."""
    H, C, N, R = cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_nope_head_dim, cfg.qk_rope_head_dim
    shapes = (2, H, T, N), (2, H, T, R), (2, 1, S, C), (2, 1, S, R)
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)[None, None].repeat(2, 1, 1, 1)
    seen[1, ..., : S - T] = False
    return [*(small.numbers(*shape, seed=seed + i) for i, shape in enumerate(shapes)), seen]


@torch.no_grad()
@given(latents, st.integers(1, 3), st.integers(0, 3), SEEDS)
def test_both_forms_are_the_same_sum_for_many_new_tokens_too(cfg, new, earlier, seed):
    attention, given_ = small.randomised(LatentAttention(cfg), seed), remembered(cfg, new, new + earlier, seed)
    assert_close(attention.absorbed(*given_), attention.expanded(*given_))


class Sizes(TorchDispatchMode):
    """The largest tensor that is made while this is on."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        return made


@torch.no_grad()
def test_absorbed_builds_neither_keys_nor_values():
    cfg = small.language(kv_lora_rank=2, qk_nope_head_dim=16, v_head_dim=16)
    with Sizes() as sizes:
        small.randomised(LatentAttention(cfg)).absorbed(*remembered(cfg, 1, 50))
    assert sizes.largest < 2 * cfg.num_attention_heads * 50 * 16       # rows, heads, tokens, width of a key or value


@torch.no_grad()
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.one_of(latents, multi_heads), PADDINGS, SEEDS)
def test_reading_in_chunks_equals_one_pass(sizes, cfg, paddings, seed):
    s = Setting(cfg, paddings, tokens=sum(sizes), seed=seed)
    # a cache with room to spare, as when an answer is still to be written
    assert_close(s.in_chunks(sizes, LayerCache(sum(sizes) + 3)), s.whole())


@torch.no_grad()
def test_one_new_token_is_absorbed_and_several_are_expanded(monkeypatch):
    s = Setting(small.language())
    ways = []
    for name in ("absorbed", "expanded"):
        way = getattr(s.attention, name)
        monkeypatch.setattr(s.attention, name, lambda *a, way=way, name=name: ways.append(name) or way(*a))
    s.in_chunks([4, 1], LayerCache(5))
    assert ways == ["expanded", "absorbed"]


@torch.no_grad()
@given(st.integers(1, 3), PADDINGS, SEEDS)
def test_a_short_question_after_a_long_picture_unpacks_nothing_and_is_the_papers_sums(question, paddings, seed):
    s = Setting(small.language(), paddings, tokens=12 + question, seed=seed)
    whole, cache = s.expected(), LayerCache(20)
    s.in_chunks([12], cache)
    s.attention.expanded = None         # not to be called from here on
    new = slice(12, 12 + question)
    got = s.attention(s.x[:, new], s.turn(s.positions[:, new]), s.seen[:, :, new], cache)
    assert_close(got, whole[:, new])


def test_when_unpacking_is_less_work_at_the_published_sizes():
    with torch.device("meta"):
        latent = LatentAttention(Config.named("small").language)
    assert latent.few(1, 1) is False and latent.few(1, 2) and latent.few(1, 4096)
    assert latent.few(30, 1053) and not latent.few(1023, 1023) and not latent.few(512, 1023)


@torch.no_grad()
def test_latent_attention_remembers_only_the_normalised_latent_and_one_rotated_key():
    s, cache = Setting(small.language()), LayerCache(5)
    s.in_chunks([5], cache)
    latents, keys = cache.rooms
    w, C = s.attention.state_dict(), s.cfg.kv_lora_rank
    for b in range(2):
        for t in range(5):
            down = w["kv_down.weight"] @ s.x[b, t]
            assert_close(latents[b, 0, t], reference.rms_norm(down[:C], w["kv_norm.weight"], s.cfg.rms_norm_eps))
            assert_close(keys[b, 0, t], reference.rope(down[C:], s.positions[b, t], s.cfg.rope_theta, interleaved=True))
    assert latents.shape[1] == keys.shape[1] == 1       # not one per head


@torch.no_grad()
def test_multi_head_attention_remembers_a_turned_key_and_a_value_for_every_head_of_keys():
    s, cache = Setting(small.language(**small.MULTI_HEAD)), LayerCache(5)      # four heads of queries share two of keys
    s.in_chunks([3, 2], cache)
    keys, values = cache.rooms
    w, d = s.attention.state_dict(), s.cfg.head_dim
    assert keys.shape == values.shape == (2, 2, 5, d)
    for b in range(2):
        for t in range(5):
            k, v = w["k_proj.weight"] @ s.x[b, t], w["v_proj.weight"] @ s.x[b, t]
            for h in range(2):
                want = reference.rope(k[h * d:(h + 1) * d], s.positions[b, t], s.cfg.rope_theta, interleaved=False)
                assert_close(keys[b, h, t], want)
                assert_close(values[b, h, t], v[h * d:(h + 1) * d])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["multi-head", "latent"])
def test_only_the_distance_between_tokens_matters(kind):
    s = Setting(small.language(**small.MULTI_HEAD) if kind == "multi-head" else small.language())
    shifted = s.attention(s.x, s.turn(s.positions + 1000), s.seen)
    assert_close(shifted, s.whole())
    stretched = s.attention(s.x, s.turn(s.positions * 2), s.seen)
    assert not torch.allclose(stretched, s.whole(), atol=1e-4)


# ------------------------------------------------------------------------------------------ transformers

OURS_TO_V2 = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q_up": "q_b_proj",
              "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj"}


def deepseek(version, cfg):
    """The attention of transformers' DeepSeek-V2 or V3, with random weights, and its rotary embedding."""
    pytest.importorskip("transformers", reason="compares with a maintained implementation")
    if version == 2:
        from transformers.models.deepseek_v2 import modeling_deepseek_v2 as theirs
        kinds = theirs.DeepseekV2Config, theirs.DeepseekV2Attention, theirs.DeepseekV2RotaryEmbedding
    else:
        from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs
        kinds = theirs.DeepseekV3Config, theirs.DeepseekV3Attention, theirs.DeepseekV3RotaryEmbedding
    Config, Attention, Rotary = kinds
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "kv_lora_rank", "q_lora_rank",
             "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rms_norm_eps")
    config = Config(**{name: getattr(cfg, name) for name in names}, attn_implementation="eager",
                    rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta})
    config.head_dim = cfg.qk_rope_head_dim      # their rotary embedding reads its width from here
    return Attention(config, layer_idx=0), Rotary(config)


@torch.no_grad()
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("query_latent", [None, 5])
def test_latent_attention_equals_transformers(version, query_latent):
    s = Setting(small.language(q_lora_rank=query_latent, qk_rope_head_dim=4))
    theirs, rotary = deepseek(version, s.cfg)
    w = {".".join([OURS_TO_V2.get(n.split(".")[0], n.split(".")[0]), "weight"]): t
         for n, t in s.attention.state_dict().items()}
    theirs.load_state_dict(w, strict=True)
    x = s.x.float()
    mask = torch.zeros(s.seen.shape).masked_fill(~s.seen, -1e30)
    want, _ = theirs.float()(hidden_states=x, attention_mask=mask, position_embeddings=rotary(x, s.positions))
    turn = tuple(t.float() for t in s.turn(s.positions))
    assert_close(s.attention.float()(x, turn, s.seen), want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_multi_head_attention_equals_transformers():
    pytest.importorskip("transformers", reason="compares with a maintained implementation")
    from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2 as theirs
    s = Setting(small.language(**small.MULTI_HEAD))
    config = theirs.DeepseekOcr2TextConfig(
        hidden_size=s.cfg.hidden_size, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": s.cfg.rope_theta})
    attention, rotary = theirs.DeepseekOcr2TextAttention(config, layer_idx=0), theirs.DeepseekOcr2TextRotaryEmbedding(config)
    attention.load_state_dict(s.attention.state_dict(), strict=True)
    x = s.x.float()
    mask = torch.zeros(s.seen.shape).masked_fill(~s.seen, -1e30)
    want, _ = attention.float()(hidden_states=x, attention_mask=mask, position_embeddings=rotary(x, s.positions))
    turn = tuple(t.float() for t in s.turn(s.positions))
    assert_close(s.attention.float()(x, turn, s.seen), want, atol=1e-5, rtol=1e-5)
