"""What is written down is what the answer was made from, and writing it down changes nothing."""

import itertools
import math

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from minivl2.attention import attend
from minivl2.generation import generate, write
from minivl2.model import DeepSeekVL2, without_twins
from minivl2.record import Ears, likeliest, watch

KINDS = {"multi-head": small.MULTI_HEAD, "latent": {}, "query latent": small.QUERY_LATENT, "sigmoid": small.SIGMOID,
         "groups": small.GROUPS}
each_kind = pytest.mark.parametrize("kind", KINDS)
STEPS = 5


def model_of(kind="latent"):
    return small.randomised(DeepSeekVL2(small.config(**KINDS[kind], eos_token_id=-1)))


def question(processor):
    return processor(small.ask("<image> what is it?"), [small.picture(80, 40)])


def answer(model, batch, **options):
    return [int(token) for token in write(model, batch, STEPS, **options)]


def hooks_of(model):
    return [hook for module in model.modules() for hook in itertools.chain(
        module._forward_hooks.values(), module._forward_pre_hooks.values(), module._forward_hooks_always_called)]


@each_kind
def test_the_answer_is_the_same_and_its_logits_are_those_recorded(processor, kind):
    model, batch = model_of(kind), question(processor)
    logits = []
    hook = model.decoder.head.register_forward_hook(lambda _, __, out: logits.append(out[0]))
    alone = answer(model, batch)
    hook.remove()
    with watch(model) as record:
        watched = answer(model, batch)
    assert watched == alone and len(record.steps) == STEPS
    for step, wanted, token in zip(record.steps, logits, alone, strict=True):
        assert torch.equal(step.logits, wanted)         # to the last bit: nothing was computed another way
        assert int(step.logits.argmax()) == token
    assert record.ids == batch.input_ids[0].tolist() + alone[:-1]       # the last token is written, never read


def test_the_likeliest_come_first_with_their_probabilities_among_all():
    logits = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log() + 7         # a constant changes no probability
    got = likeliest(logits, 3)
    assert [token for token, _ in got] == [1, 3, 4]
    assert [p for _, p in got] == pytest.approx([0.4, 0.3, 0.15])        # of five, not of three
    assert all(type(token) is int and type(p) is float for token, p in got)     # plain numbers, for JSON
    assert sum(p for _, p in likeliest(logits, 5)) == pytest.approx(1)


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True), st.data())
def test_the_likeliest_are_those_with_the_largest_logits(quarters, data):
    values = [quarter / 4 for quarter in quarters]          # far enough apart to have different probabilities
    k = data.draw(st.integers(1, len(values)))
    before = torch.tensor(values)
    logits = before.clone()
    got = likeliest(logits, k)
    assert [token for token, _ in got] == sorted(range(len(values)), key=lambda i: -values[i])[:k]
    total = sum(math.exp(value - max(values)) for value in values)
    for token, p in got:
        assert p == pytest.approx(math.exp(values[token] - max(values)) / total, abs=1e-6)
    assert torch.equal(logits, before)


def test_the_likeliest_of_half_precision_have_probabilities_in_full():
    logits = (small.numbers(600) / 4).bfloat16()
    assert sum(p for _, p in likeliest(logits, 600)) == pytest.approx(1, abs=1e-5)
    assert likeliest(logits, 9) == likeliest(logits.float(), 9)


@each_kind
def test_attention_is_what_the_values_were_mixed_with(processor, kind):
    """What enters a layer's output projection is, head for head, the recorded weights times the values."""
    model, batch = model_of(kind), question(processor)
    mixed, values = [], []
    for layer in model.decoder.layers:
        layer.attn.register_forward_hook(lambda attn, inputs, _: values.append(values_of(attn, inputs[3])))
        layer.attn.o_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0][0, -1]))
    with watch(model) as record:
        answer(model, batch)
    layers = len(model.decoder.layers)
    assert len(mixed) == STEPS * layers
    for n, (wanted, value) in enumerate(zip(mixed, values, strict=True)):
        weights = record.steps[n // layers].attention[n % layers]                               # (H, S)
        assert_close(torch.einsum("hs,hsv->hv", weights, value).flatten(), wanted)
        assert_close(weights.sum(-1), torch.ones(len(weights), dtype=weights.dtype))            # rows sum to one


def values_of(attn, cache):
    """(H, S, v): the values of every head, from what its layer remembers."""
    if hasattr(attn, "kv_up"):
        W_uv = attn.kv_up.weight.unflatten(0, (attn.H, -1))[:, attn.N:]
        return torch.einsum("sc,hvc->hsv", cache.rooms[0][0, 0, :cache.length], W_uv)
    value = cache.rooms[1][0, :, :cache.length]
    return value.repeat_interleave(attn.q_proj.out_features // attn.head_dim // len(value), 0)


def test_what_a_patch_looks_at_is_what_its_values_were_mixed_with(processor):
    model, batch = model_of(), question(processor)
    heads, mixed, values = model.config.vision.heads, [], []
    for block in model.vision.blocks:
        block.attn.qkv.register_forward_hook(
            lambda _, __, out: values.append(out.unflatten(-1, (3, heads, -1))[:, :, 2].transpose(1, 2)))
        block.attn.proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
    with watch(model) as record:
        answer(model, batch)
    views = len(without_twins(batch.tiles, [tuple(batch.grids[0].tolist())])[0])
    assert record.seeing.keys() == {0, 1} and record.seeing[0].shape[0] == views == 3
    for block, weights in record.seeing.items():
        assert_close((weights @ values[block]).transpose(1, 2).flatten(2), mixed[block])
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("rows", [slice(None), [1]])
def test_ears_hear_a_mask_and_only_the_rows_and_queries_they_are_to_keep(rows):
    q, k, v = small.numbers(2, 3, 4, 5, seed=1), small.numbers(2, 3, 6, 5, seed=2), small.numbers(2, 3, 6, 5, seed=3)
    seen = small.numbers(2, 1, 4, 6, seed=4) > 0
    seen[..., 0] = True
    heard = []
    with Ears(rows, slice(1, 3), heard.append):
        out = attend(q, k, v, seen, 0.7)
    assert torch.equal(out, attend(q, k, v, seen, 0.7))
    assert_close(heard[0] @ v[rows], out[rows][:, :, 1:3])
    assert len(heard) == 1


def test_views_blocks_and_steps_can_be_chosen(processor):
    model, batch = model_of(), question(processor)
    with watch(model) as whole:
        answer(model, batch)
    with watch(model, views=[2], blocks=[1], most_steps=2) as part:
        answer(model, batch)
    assert part.seeing.keys() == part.features.keys() == {1}
    assert torch.equal(part.seeing[1], whole.seeing[1][[2]])
    assert torch.equal(part.features[1], whole.features[1])
    assert [step.attention is None for step in part.steps] == [False, False, True, True, True]


@each_kind
def test_routing_is_what_the_experts_were_given(processor, kind):
    model, batch = model_of(kind), question(processor)
    given = {}
    for i, layer in enumerate(model.decoder.layers[1:], start=1):
        for way in ("routed", "direct"):        # for many tokens, and for one
            compute = getattr(layer.mlp, way)

            def spy(tokens, routing, i=i, compute=compute):
                given.setdefault(i, []).append(routing)
                return compute(tokens, routing)
            setattr(layer.mlp, way, spy)
    with watch(model) as record:
        answer(model, batch)
    assert record.gates.keys() == given.keys() == {1, 2}
    for i, calls in given.items():
        kept = record.routing(i)
        assert torch.equal(kept.experts, torch.cat([r.experts for r in calls])) and len(kept.experts) == len(record.ids)
        assert torch.equal(kept.weights, torch.cat([r.weights for r in calls]))


@pytest.mark.parametrize("chunk", [None, 4])
@each_kind
def test_a_step_of_the_answer_is_the_end_of_a_longer_prompt(processor, kind, chunk):
    """From the cache or not, in chunks or not: the same tokens are looked at in the same measure."""
    model, batch = model_of(kind), processor(small.ask("how many are there?"))
    with watch(model) as record:
        tokens = answer(model, batch, prefill_chunk=chunk)
    for n, step in enumerate(record.steps):
        ids = torch.cat((batch.input_ids, torch.tensor([tokens[:n]], dtype=torch.long)), dim=1)
        longer = type(batch)(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool),
                             batch.tiles, batch.grids)
        with watch(model) as again:
            next(write(model, longer, 1))
        assert_close(again.steps[0].attention, step.attention)


@each_kind
def test_the_cache_is_as_large_as_its_price_list_says(processor, kind):
    from minivl2.cost import cache_numbers
    model = model_of(kind)
    with watch(model) as record:
        answer(model, question(processor))
    assert record.remembered == {i: (cache_numbers(model.config.language), 8) for i in range(3)}      # float64


@torch.no_grad()
def test_nothing_is_left_behind(processor):
    model, batch = model_of(), question(processor)
    before = [dict(vars(module)) for module in model.modules()]
    with watch(model):
        assert hooks_of(model)
        answer(model, batch)
    assert not hooks_of(model)
    assert [vars(module).keys() for module in model.modules()] == [kept.keys() for kept in before]
    with pytest.raises(RuntimeError), watch(model):
        model.decoder.layers[1].attn(torch.zeros(1, 1, 3), None, None, None)        # breaks inside the module
    assert not hooks_of(model)
    assert torch.overrides._get_current_function_mode() is None                     # and nobody listens any more


def test_one_conversation_at_a_time(processor):
    model, batch = model_of(), processor.batch([question(processor)] * 2)
    with pytest.raises(ValueError, match="only one conversation can be watched at a time; this batch has 2"), watch(model):
        generate(model, batch, 1)
    assert not hooks_of(model)
