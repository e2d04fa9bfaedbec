"""What is counted is what is computed; what is measured is printed beside it."""

import dataclasses
import json
import types

import pytest
import small
import torch
from torch.utils.flop_counter import FlopCounterMode

from minivl2 import Config, afresh, bench, cli, cost, peer, roofline, stand_in
from minivl2.cache import Cache
from minivl2.model import DeepSeekVL2
from minivl2.weights import load, verify

GOLDEN = "tests/goldens/mla"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(afresh, "WORDS", 2)
    monkeypatch.setattr(bench, "GRIDS", ((1, 1), (2, 1)))
    monkeypatch.setattr(bench, "CONTEXTS", (32, 64))
    monkeypatch.setattr(bench, "PROMPT", 48)


def multiplied(run, *inputs):
    """With gradients: then attention is by hand, whose products torch counts; those of its kernels it does not."""
    with FlopCounterMode(display=False) as counter:
        run(*inputs)
    return counter.get_total_flops()


def test_the_count_of_the_tower_is_what_torch_counts():
    model = small.randomised(DeepSeekVL2(small.config()), dtype=torch.float32)
    tiles = small.numbers(2, 3, small.TILE, small.TILE, dtype=torch.float32)
    assert multiplied(model.vision, tiles) == 2 * roofline.vision_flops(model.config)


@pytest.mark.parametrize("changes", [{}, {**small.MULTI_HEAD, "num_key_value_heads": 4}], ids=["latent", "multi-head"])
def test_the_count_of_a_prompt_is_what_torch_counts_but_for_the_future(changes):
    """By hand, the scores that causality forbids are computed as well: twice the attention that is needed."""
    cfg, T = small.config(**changes), 20
    decoder, lang = small.randomised(DeepSeekVL2(cfg), dtype=torch.float32).decoder, cfg.language
    x, real = small.numbers(1, T, 16, dtype=torch.float32), torch.ones(1, T, dtype=torch.bool)
    counted = multiplied(lambda: decoder.head(decoder(x, real)[0][:, -1]))
    width = lang.qk_nope_head_dim + lang.qk_rope_head_dim + lang.v_head_dim if lang.use_mla else 2 * lang.head_dim
    future = lang.num_hidden_layers * lang.num_attention_heads * T * T * width
    assert counted - future == roofline.prompt_flops(cfg, T) - norm_flops(decoder, T)


@pytest.mark.parametrize("changes", [{}, {**small.MULTI_HEAD, "num_key_value_heads": 4}], ids=["latent", "multi-head"])
def test_the_count_of_a_word_is_what_torch_counts(changes):
    """Of the memory's last token, the word itself, the keys are there, too; latents are unpacked and values packed away by
    the same matrix, once each, so torch counts as many operations as it has numbers."""
    cfg = small.config(**changes)
    decoder, lang = small.randomised(DeepSeekVL2(cfg), dtype=torch.float32).decoder, cfg.language
    cache = Cache(lang.num_hidden_layers, 10)
    real = torch.ones(1, 10, dtype=torch.bool)
    decoder(small.numbers(1, 9, 16, dtype=torch.float32), real[:, :9], cache)
    word = small.numbers(1, 1, 16, dtype=torch.float32)
    counted = multiplied(lambda: decoder.head(decoder(word, real[:, 9:], cache)[0]))
    assert counted == roofline.word_flops(cfg, 10) - norm_flops(decoder, 1)


def norm_flops(decoder, tokens):
    """The norm of the latent is counted with the attention: two operations a number, which torch does not count."""
    return 2 * tokens * sum(p.numel() for name, p in decoder.named_parameters() if "kv_norm" in name)


def test_the_bytes_of_a_word_are_those_of_the_weights_it_meets():
    model = DeepSeekVL2(small.config()).bfloat16()
    lang = model.config.language
    one_expert = 3 * lang.hidden_size * lang.moe_intermediate_size * 2
    whole = sum(p.nbytes for p in model.decoder.parameters()) - model.decoder.embed.weight.nbytes
    idle = 2 * (lang.n_routed_experts - lang.num_experts_per_tok) * one_expert      # in two layers
    assert bench.word_bytes(model, 0) == whole - idle
    assert bench.word_bytes(model, 10) - bench.word_bytes(model, 0) == 10 * 3 * 2 * cost.cache_numbers(lang)
    norms = sum(p.nbytes for n, p in model.decoder.named_parameters() if "norm" in n and "kv_norm" not in n)
    assert roofline.plain_word_bytes(model.config, 0, torch.bfloat16) == whole - idle - norms
    assert whole - idle < bench.word_bytes(model, 0, rows=2) < whole       # two rows may share an expert
    assert bench.word_bytes(model, 0, rows=1000) == pytest.approx(whole)


def test_a_figure_is_its_share_of_the_limits_around_it():
    machine = roofline.Machine(torch.float32, large=False)
    limits = iter([100.0, 300.0, 200.0, 200.0])
    machine.measure = lambda kind: next(limits)
    figure = roofline.Figure("decode", "tokens/s", work=4, flops=7, bytes=50, limit="bytes", run=lambda: 0.5)
    figure.take(machine)
    assert figure.rates == [8] and figure.fractions == [0.5] and not figure.steady
    figure = dataclasses.replace(figure, rates=[], fractions=[], steady=True)
    figure.take(machine)
    assert figure.fractions == [0.5] and figure.steady


@torch.no_grad()
def test_a_memory_of_tokens_never_read_is_as_long_as_one_of_tokens_read():
    model = small.randomised(DeepSeekVL2(small.config()), dtype=torch.float32)
    cache = bench.remembering(model, 2, 9, 3)
    assert cache.length == 9 and all(layer.length == 9 for layer in cache.layers)
    assert all(room.isfinite().all() for layer in cache.layers for room in layer.rooms)
    for _ in range(3):
        bench.one_word(model, torch.zeros(2, 1, dtype=torch.long), cache)
    assert cache.length == 12 and cache.append_real(torch.ones(2, 0, dtype=torch.bool)).all()


@pytest.mark.parametrize("layers", [None, 2])
def test_random_weights_are_written_once_in_the_published_layout(layers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    folder, config = stand_in.checkpoint("toy", "bfloat16", layers, said.append)
    assert verify(folder) == [] and "random weights" in said[0] and str(tmp_path / folder) in said[0]
    assert config.language.num_hidden_layers == (layers or Config.named("toy").language.num_hidden_layers)
    model, _ = load(folder, torch.bfloat16)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert stand_in.checkpoint("toy", "bfloat16", layers, said.append)[0] == folder and len(said) == 1
    assert all(torch.equal(t, before[name]) for name, t in load(folder, torch.bfloat16)[0].state_dict().items())


def test_everything_is_measured_and_printed(quick, capsys):
    status = cli.main(["bench", GOLDEN, "--dtype", "float32", "--repeats", "1", "--words", "2", "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert status == 0 and "once to warm up" in err
    assert {"limits", "measured", "fraction", "memory_gb", "seconds"} <= found.keys()
    ours = {"vision", "prompt", "decode", "decode at 32", "decode at 64", "decode, 4 side by side"}
    assert ours <= found["fraction"].keys() and all(found["fraction"][name] > 0 for name in ours)
    config = Config.from_file(GOLDEN)
    assert found["measured"]["cache_numbers_per_token_and_layer"] == cost.cache_numbers(config.language)
    assert found["seconds"]["load to first word"] > found["seconds"]["load"] > 0
    assert found["memory_gb"]["peak"] > found["memory_gb"]["before loading"] > 0.01
    for name in ours:
        assert f"\n{name} " in out
    try:
        import transformers  # noqa: F401
    except ImportError:
        return
    assert {"transformers: vision", "transformers: prompt", "transformers: decode"} <= found["fraction"].keys()


def test_a_peer_that_does_not_fit_is_left_out(monkeypatch):
    pytest.importorskip("transformers", reason="the peer")
    said = []
    monkeypatch.setattr(peer, "free_memory", lambda: 1000)
    assert peer.figures(Config.named("toy"), torch.bfloat16, 1, 8, 2, said.append) == []
    assert "more than is free: left out" in said[0]


def test_random_weights_do_not_fill_the_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stand_in.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=54_000_000_000))
    assert cli.main(["bench", "base"]) == 1
    said = capsys.readouterr().err
    assert "need 54.96 GB, and the disk here has 54.00 GB free. With --layers 4" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, said", [
    ([GOLDEN, "--layers", "2"], "--layers is for the named sizes"),
    (["huge"], "there is no folder huge, and no size of that name: the sizes are toy, tiny, small, base"),
    (["tests"], "a checkpoint folder holds a config.json"),
])
def test_what_cannot_be_measured_is_said(arguments, said, capsys):
    assert cli.main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err
