"""What is compared comes to the same, and what was swapped is put back."""

import json

import pytest
import torch
from torch.testing import assert_close

from minivl2 import bench, cli, gains
from minivl2.cache import LayerCache
from minivl2.experts import MixtureOfExperts
from minivl2.weights import load


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "PROMPT", 24)


def of(kind):
    model, processor = load(f"tests/goldens/{kind}", torch.float64)
    return gains.gains_of(model, processor, 3)


@pytest.mark.parametrize("kind", ["mla", "mha"])
@torch.no_grad()
def test_both_ways_come_to_the_same(kind):
    for gain in of(kind):
        results = []
        for way in (gain.fast, gain.plain):
            torch.manual_seed(0)
            results.append(way())
        fast, plain = results
        if isinstance(fast, list):
            assert fast == plain and len(fast) == 3, gain
        else:
            assert_close(fast, plain[:, -fast.shape[1]:], msg=lambda text, gain=gain: f"{gain.phase}, {gain.change}: {text}")


def test_what_is_swapped_is_put_back_even_after_an_error():
    called = []
    before = LayerCache.append, MixtureOfExperts.routed

    def fails():
        called.append(LayerCache.append)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        gains.instead(fails, LayerCache, "append", gains.grown)()
    assert called == [gains.grown] and before == (LayerCache.append, MixtureOfExperts.routed)


def test_each_plain_way_is_taken_when_it_is_measured_and_never_else(monkeypatch):
    names, taken = ("every_expert", "asked_in_turn", "grown", "all_of_them"), []

    def noting(name, plain):
        return lambda *inputs: taken.append(name) or plain(*inputs)

    for name in names:
        monkeypatch.setattr(gains, name, noting(name, getattr(gains, name)))
    measured = []
    with torch.no_grad():
        for gain in of("mla"):
            gain.fast()
            assert taken == [], gain
            gain.plain()
            measured += set(taken)
            taken.clear()
    assert sorted(measured) == sorted(names)


def test_free_memory_is_handed_back_only_while_that_is_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(gains.heap, "keep_freed", lambda *most: asked.append(most))
    assert gains.handed_back(lambda: list(asked))() == [(2**26,)]
    assert asked == [(2**26,), ()]


def test_latent_attention_is_compared_only_where_there_is_any():
    changes = {kind: [gain.change for gain in of(kind)] for kind in ("mla", "mha")}
    assert [change for change in changes["mla"] if change not in changes["mha"]] == ["latents absorbed, not expanded"]


def test_the_command_prints_a_table_and_the_same_as_json(capsys):
    arguments = ["bench", "tests/goldens/mla", "--gains", "--dtype", "float32", "--repeats", "1", "--words", "2", "--json"]
    assert cli.main(arguments) == 0
    *table, line = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)
    assert len(table) == 1 + len(found["gains"]) and found["about"]["repeats"] == 1
    for row, gain in zip(table[1:], found["gains"], strict=True):
        assert row.startswith(gain["phase"]) and gain["change"] in row and gain["seconds"] > 0 and gain["plain_seconds"] > 0


def test_packed_weights_have_no_plain_way(capsys):
    assert cli.main(["bench", "tests/goldens/mla", "--gains", "--quantize", "int8"]) == 1
    assert "plain weights" in capsys.readouterr().err
