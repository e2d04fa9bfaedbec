"""What a model costs, against the published figures and against hand counts."""

import pytest
import small
import torch

import minivl2
from minivl2 import Config, cost
from minivl2.cache import Cache
from minivl2.decoder import Decoder


def totals(name):
    parts = cost.parts(Config.named(name))
    return sum(p.total for p in parts), sum(p.activated for p in parts)


@pytest.mark.parametrize("name, total, activated", [
    # totals: all tensors of the published checkpoints; the paper prints 3.37/1.0, 16.1/2.8 and 27.5/4.5
    ("tiny", 3.3705, 0.99), ("small", 16.1483, 2.88), ("base", 27.4801, 4.56)])
def test_the_published_figures(name, total, activated):
    got_total, got_activated = totals(name)
    assert round(got_total / 1e9, 4) == total
    assert round(got_activated / 1e9, 2) == activated


def test_parts_add_up_to_the_model_that_is_built():
    config = Config.named("toy")
    model = minivl2.build(config)
    built = sum(t.numel() for t in model.state_dict().values())
    unused = next(p.total for p in cost.parts(config) if "unused" in p.name)
    assert totals("toy")[0] == built + unused


def test_activated_counts_only_the_chosen_experts():
    lang = Config.named("tiny").language
    routed = next(p for p in cost.parts(Config.named("tiny")) if p.name == "routed experts")
    one_expert = 3 * lang.hidden_size * lang.moe_intermediate_size
    assert routed.total == 11 * 64 * one_expert and routed.activated == 11 * 6 * one_expert


@pytest.mark.parametrize("lang", [
    Config.from_file("tests/goldens/mha").language, Config.from_file("tests/goldens/mla").language,
    small.language(), small.language(**small.MULTI_HEAD)], ids=["mha", "mla", "small latent", "fewer key heads"])
def test_cache_numbers_are_those_the_cache_really_holds(lang):
    """Run the decoder, and count what is in its cache."""
    decoder = Decoder(lang)
    tokens = 5
    cache = Cache(lang.num_hidden_layers, capacity=tokens)
    decoder(torch.randn(1, tokens, lang.hidden_size), torch.ones(1, tokens, dtype=torch.bool), cache)
    assert cache.bytes == 4 * cost.cache_numbers(lang) * tokens * lang.num_hidden_layers


def test_latent_attention_remembers_576_numbers_where_multi_head_would_need_4096():
    lang = Config.named("small").language
    assert cost.cache_numbers(lang) == 576 and cost.multi_head_numbers(lang) == 4096
    assert cost.cache_numbers(Config.named("tiny").language) == 2560


def test_the_report_names_the_counting_rule():
    text = cost.report("tiny", Config.named("tiny"))
    assert "without the input embedding" in text and "3.3705 B" in text and "6.74 GB" in text
