"""What the X-ray page shows is what was recorded; text is text; sizes are kept in bounds."""

import base64
import json
import re
import time

import numpy as np
import parrot
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivl2 import panels, toyworld
from minivl2.cost import cache_numbers
from minivl2.model import DeepSeekVL2
from minivl2.visual_tokens import count
from minivl2.xray import LESSONS, XRay

HOSTILE = "</script><script>window.hacked=1</script><b>&amp;"


@pytest.fixture(scope="module")
def toy():
    return parrot.toy()


def unpacked(packed):
    numbers = np.frombuffer(base64.b64decode(packed["bytes"]), np.uint8).reshape(packed["shape"])
    if "top" not in packed:
        return torch.tensor(numbers)
    top = np.frombuffer(base64.b64decode(packed["top"]), np.float32).reshape(packed["shape"][:-1])
    return torch.tensor(numbers / 255 * top[..., None])


def looked(model, processor, question="how many?", grids=((3, 3),), tokens=12):
    pictures = [toyworld.draw(f"x-ray {n}", "scenes", grid).images[0] for n, grid in enumerate(grids)]
    seen = XRay(model, processor, question, pictures, [f"{n}.png" for n in range(len(pictures))])
    list(seen.stream(tokens))
    return seen


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


# ------------------------------------------------------------------------------------------ packing


@given(st.integers(1, 60), st.integers(1, 60))
def test_spread_is_even_and_ends_with_the_last(n, most):
    kept = panels.spread(n, most)
    assert len(kept) == min(n, most) == len(set(kept)) and kept[-1] == n - 1 and kept[0] >= 0
    steps = {b - a for a, b in zip(kept, kept[1:], strict=False)}
    assert not steps or max(steps) - min(steps) <= 1


@given(st.integers(1, 30), st.integers(1, 32), st.integers(1, 400))
def test_channels_fill_the_room_and_no_more(layers, heads, room):
    kept = panels.channels(layers, heads, room)
    assert len(kept) == len(set(kept)) <= max(room, 2)
    assert all(0 <= layer < layers and panels.MEAN <= head < heads for layer, head in kept)
    if layers * (heads + 1) <= room:
        assert len(kept) == layers * (heads + 1)
    for layer, _ in kept:
        assert (layer, panels.MEAN) in kept         # the mean can be looked at wherever a head can


def test_eight_bits_are_exact_to_a_step_and_sums_over_them_to_half_a_step():
    rows = small.numbers(5, 7, 30).abs()
    rows[2, 3] = 0
    packed = unpacked(panels.quantised(rows))
    level = rows.amax(-1, keepdim=True) / 255
    assert ((packed - rows).abs() <= level * 1.001).all()
    assert ((packed.cumsum(-1) - rows.cumsum(-1)).abs() <= level / 2 * 1.01).all()      # of any stretch, however long


def test_pooled_attention_is_that_of_four_patches_together():
    weights = small.numbers(2, 49, 49).softmax(-1)
    pooled = panels.pooled(weights, 4)
    assert pooled.shape == (2, 16, 16)
    torch.testing.assert_close(pooled.sum(-1), torch.ones(2, 16, dtype=pooled.dtype))       # still rows that sum to one
    block = [0, 1, 7, 8]                                                                    # the first 2 x 2 patches
    torch.testing.assert_close(pooled[:, 0, 0], weights[:, block][:, :, block].sum(-1).mean(-1))
    torch.testing.assert_close(pooled[:, 15, 15], weights[:, 48, 48])       # 7 is odd: the last token has one patch
    assert panels.pooled(weights, 7) is weights


# ------------------------------------------------------------------------------------------ what is shown


def test_the_page_shows_the_numbers_that_were_recorded(toy):
    model, processor = toy
    seen = looked(model, processor)
    data, record = data_of(seen.page()), seen.record
    lang, vision = model.config.language, model.config.vision

    reading = unpacked(data["reading"]["attention"])
    assert len(data["reading"]["channels"]) == lang.num_hidden_layers * (lang.num_attention_heads + 1)      # all are kept
    for c, (layer, head) in enumerate(data["reading"]["channels"]):
        for n, step in enumerate(record.steps):
            weights = step.attention[layer]
            wanted = weights.mean(0) if head < 0 else weights[head]
            got = reading[c, n]
            assert (got[: len(wanted)] - wanted).abs().max() <= wanted.max() / 255 and not got[len(wanted):].any()
    for likely, step, token in zip(data["reading"]["likely"], record.steps, seen.answer, strict=True):
        probabilities = step.logits.softmax(-1)
        assert [p for _, _, p in likely["top"]] == pytest.approx(probabilities.topk(5).values.tolist())
        assert likely["chosen"][1] == pytest.approx(float(probabilities[token]))
        assert likely["top"][0][0] == token                                     # greedy: the likeliest was taken

    seeing = unpacked(data["seeing"]["attention"])
    assert seeing.shape[:2] == (vision.layers * (vision.heads + 1), 10)
    c = data["seeing"]["channels"].index([1, 2])
    assert (seeing[c, 4] - record.seeing[1][4, 2]).abs().max() < 1 / 255

    for row, layer in enumerate(data["gates"]["layers"]):
        routing = record.routing(layer)
        assert torch.equal(unpacked(data["gates"]["chosen"])[row].long(), routing.experts)
        weights = unpacked(data["gates"]["weights"])[row]
        assert (weights - routing.weights).abs().max() < 1 / 255


@pytest.mark.parametrize("grids", [(), ((1, 1),), ((3, 2),), ((2, 1), (1, 1)), ((1, 1), (1, 1), (1, 1))])
def test_the_line_is_all_that_was_read_in_order(toy, grids):
    seen = looked(*toy, grids=grids, tokens=5)
    data = data_of(seen.page())
    ids, places = [], []
    for stretch in data["line"]:
        assert stretch["first"] == len(ids)
        if stretch["kind"] == "image":
            ids += [toy[1].special_ids["<image>"]] * stretch["length"]
            places.append((stretch["first"], stretch["length"]))
        else:
            ids += [token for token, _ in stretch["tokens"]]
    assert ids == seen.batch.input_ids[0].tolist() + seen.answer and ids[: len(seen.record.ids)] == seen.record.ids
    assert places == [(its["first"], len(its["places"])) for its in data["pictures"]]
    assert [length for _, length in places] == [count(grid, 4) for grid in seen.sizes]


def test_loads_are_counted_for_visual_and_text_tokens_apart(toy, monkeypatch):
    drawn = []
    monkeypatch.setattr(panels.figures, "svg", lambda draw, load, **_: drawn.append(load) or "")
    seen = looked(*toy, tokens=5)
    shown = panels.gates_of(seen)
    visual = seen.batch.image_mask[0].tolist()
    for load, layer in zip(drawn, shown["data"]["layers"], strict=True):
        counted = {"visual": [0] * 8, "text": [0] * 8}
        for n, experts in enumerate(seen.record.routing(layer).experts.tolist()):
            for expert in experts:
                counted["visual" if n < len(visual) and visual[n] else "text"][expert] += 1
        assert {name: numbers.tolist() for name, numbers in load.items()} == counted


def test_memory_is_measured_and_priced_alike(toy):
    seen = looked(*toy, tokens=5)
    memory, lang = panels.memory_of(seen), toy[0].config.language
    assert memory["measured"] == lang.num_hidden_layers * cache_numbers(lang) and memory["width"] == 4
    assert memory["bytes"] == memory["measured"] * 4 * len(seen.record.ids)
    assert [row["name"] for row in memory["rows"]] == ["this model", "Tiny", "Small", "Base"]
    small_row = memory["rows"][2]
    assert (small_row["kept"], small_row["multi_head"]) == (576, 4096)
    assert small_row["tokens"] == memory["words"] + count((1, 1), 14)       # 160 x 160 pixels: one tile of 384
    assert small_row["bytes"] == 2 * 576 * 27 * small_row["tokens"]


@pytest.mark.parametrize("kind", [
    {"n_routed_experts": None}, small.MULTI_HEAD, small.SIGMOID | {"n_group": 2, "topk_group": 1}])
def test_other_models_can_be_looked_into(processor, kind):
    model = small.randomised(DeepSeekVL2(small.config(**kind)), dtype=torch.float32)
    seen = XRay(model, processor, "what is it?", [small.picture(60, 40)])
    list(seen.stream(4))
    page = seen.page()
    assert ("This model has none" in page) == ("n_routed_experts" in kind)
    assert (data_of(page)["gates"] is None) == ("n_routed_experts" in kind)


def test_what_does_not_fit_is_left_out_evenly_and_said(toy, monkeypatch):
    for budget in ("READING_BYTES", "SEEING_BYTES", "GATE_BYTES"):
        monkeypatch.setattr(panels, budget, 30_000 if budget != "GATE_BYTES" else 1000)
    seen = looked(*toy)
    page = seen.page()
    data = data_of(page)
    assert page.count("would be too large for a page") == 3
    for panel in ("reading", "seeing"):
        assert len(base64.b64decode(data[panel]["attention"]["bytes"])) <= 30_000
    assert data["seeing"]["with_attention"] == [0, 1] and len(data["seeing"]["views"]) == 10
    assert len(data["gates"]["layers"]) < 3
    monkeypatch.undo()
    assert "too large" not in looked(*toy).page()


# ------------------------------------------------------------------------------------------ the page


def test_a_page_of_nine_tiles_and_sixty_tokens_is_small_and_quick():
    model, processor = parrot.toy()
    spoken = parrot.teach(model, processor, "red " * 200)
    assert spoken > 60
    started = time.perf_counter()
    seen = looked(model, processor, tokens=60)
    page = seen.page()
    assert time.perf_counter() - started < 10 and len(page.encode()) < 5_000_000
    assert len(seen.answer) == 60 and seen.sizes == [(3, 3)]


def test_markup_anywhere_is_text():
    model, processor = parrot.toy()
    parrot.teach(model, processor, f"<|ref|>{HOSTILE}<|/ref|>{HOSTILE}")
    picture = toyworld.draw("hostile", "scenes", (1, 1)).images[0]
    seen = XRay(model, processor, f"what? {HOSTILE}", [picture], [f"{HOSTILE}.png"])
    list(seen.stream(100))
    page = seen.page()
    assert HOSTILE in seen.text and HOSTILE not in page
    assert data_of(page)["pictures"][0]["name"] == f"{HOSTILE}.png"         # arrives whole, as data
    assert page.count("<script") == page.count("</script>") == 2            # ours: the data, and page.js


def test_every_panel_says_in_two_sentences_what_one_sees_and_names_its_lesson(toy):
    page = looked(*toy, tokens=3).page()
    for panel, lesson in LESSONS.items():
        section = re.search(rf'<section class="panel" id="{panel}".*?</section>', page, re.S)[0]
        text = re.search(r'<p class="lede">(.*?)</p>', section, re.S)[1]
        assert len(re.findall(r"[.](?:\s|$)", text)) == 2, text
        assert f"lessons/{lesson}.ipynb" in section


def test_lessons_are_linked_only_where_the_link_can_work(toy, tmp_path, monkeypatch):
    from minivl2 import xray
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "01_tiles.ipynb").touch()
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(xray, "HOUSE", tmp_path)
    seen = looked(*toy, tokens=2)
    assert 'href="../lessons/01_tiles.ipynb"' in seen.page(tmp_path / "runs")
    assert "02_seeing.ipynb</code>" in seen.page(tmp_path / "runs")         # not there, so only named
    assert 'href="' not in re.search(r'id="tiles".*?</section>', seen.page(tmp_path.parent), re.S)[0]


def test_the_page_asks_for_nothing_from_anywhere(toy):
    page = looked(*toy, tokens=2).page()
    page = page.replace("http://www.w3.org/", "")                           # names of SVG's dialects, never fetched
    assert not re.search(r"https?://|//cdn|@import", page)
    assert "default-src 'none'" in page and "connect-src 'none'" in page.replace("&#39;", "'")
