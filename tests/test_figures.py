"""The pictures that explain the model are drawn from the model's own numbers."""

import base64
import json
import re
import subprocess
import sys
import types
import xml.etree.ElementTree as xml

import matplotlib
import numpy as np
import pytest
import small
import torch
from matplotlib.figure import Figure

from minivl2 import Config, figures, toyworld
from minivl2.places import places
from minivl2.tiling import cut
from minivl2.visual_tokens import count


@pytest.fixture
def axis():
    return Figure().subplots()


def test_the_overview_draws_one_square_for_each_visual_token():
    sample, config = toyworld.draw("overview", "scenes", (2, 2)), Config.named("toy")
    figure = figures.overview(sample, config)
    tokens = figure.subfigs[2].axes[0]
    assert len(tokens.patches) == count((2, 2), config.tokens_per_side)
    assert str(count((2, 2), config.tokens_per_side)) in tokens.get_title()
    assert len(figure.subfigs[1].subfigs[1].axes) == 4      # four local tiles


def test_a_tiling_is_drawn_with_its_seams_and_its_cost():
    figure = figures.draw_tiling(small.picture(1000, 700), Config.named("small").candidate_resolutions)
    picture, whole, local = figure.axes
    assert len(local.lines) == 2 + 1 and "3 x 2 tiles" in local.get_title() and not whole.lines
    assert local.images[0].get_size() == (768, 1152) and "1000 x 700" in picture.get_title()
    assert figure.get_suptitle().startswith("1415 visual tokens")
    assert "1 x 1" in figures.draw_tiling(small.picture(99, 99), [(42, 42), (84, 84)], "paper").axes[2].get_title()


def test_what_can_be_played_with_is_a_plain_picture_elsewhere(monkeypatch):
    asked = []

    def draw(**choices):
        asked.append(choices)
        return figures.where()
    play = figures.Playable(draw, size=(3, range(1, 9, 2)), rule=("paper", ["released", "paper"]))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)        # as if it were not installed
    shown = play._repr_mimebundle_()
    assert set(shown) == {"image/png", "text/plain"} and base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")

    widgets = types.ModuleType("ipywidgets")
    widgets.IntSlider = lambda value, low, high, step, continuous_update: (value, low, high, step)
    widgets.Dropdown = lambda options, value: (value, options)
    widgets.interactive = lambda f, options, **controls: types.SimpleNamespace(
        _repr_mimebundle_=lambda: {"widget": (f, options, controls)})
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    shown = play._repr_mimebundle_()
    controls = {"size": (3, 1, 7, 2), "rule": ("paper", ["released", "paper"])}
    assert shown["widget"] == (draw, {"auto_display": True}, controls)
    assert "image/png" in shown and asked == [{"size": 3, "rule": "paper"}] * 2


def test_views_are_the_pixels_the_tower_gets():
    """A picture that fills its tiles comes back as it was, tile beside tile."""
    picture = small.picture(84, 42)
    whole, local = figures.views_of(cut(picture, (2, 1), 42, (0.5,) * 3, (0.5,) * 3), (2, 1), (0.5,) * 3, (0.5,) * 3)
    assert np.array_equal(np.array(local), np.array(picture)) and whole.size == (42, 42)


def test_like_vectors_have_like_colours():
    """Three kinds of vector, each at three lengths, all but hidden in 20 dimensions: three colours come out."""
    directions = torch.linalg.qr(small.numbers(20, 3))[0].T
    kind = torch.arange(36) % 3
    features = (directions[kind] * torch.tensor([1.0, 5.0, 90.0]).repeat_interleave(12)[:, None]).view(1, 36, 20)
    colours = figures.principal_colours(features)[0].int()
    assert colours.shape == (36, 3)
    for a in range(36):
        for b in range(36):
            apart = (colours[a] - colours[b]).abs().max()
            assert apart <= 2 if kind[a] == kind[b] else apart > 80


def test_heat_grows_with_attention():
    table = figures.heat_table().astype(int)
    assert table.shape == (256, 4) and table[0, 3] == 0                         # nothing is nothing at all
    assert (np.diff(table[:, 3]) >= 0).all() and table[-1, 3] > 200
    assert (np.diff(table[:, :3] @ [0.2126, 0.7152, 0.0722]) > -1).all()        # and brighter, for those who see no hues


def test_heat_lies_where_the_tokens_see(axis):
    picture, weights = small.picture(84, 42), torch.tensor([0.0, 0.1, 0.2, 0.4, 0.0, 0.0, 0.0, 0.2])
    found = [place for place in places((84, 42), (2, 1), 42, 14) if place.kind == 1]
    figures.draw_heat(axis, picture, found, weights, "title")
    assert len(axis.patches) == 8
    brightest = max(axis.patches, key=lambda patch: patch.get_facecolor()[3])
    assert (brightest.get_x(), brightest.get_width(), brightest.get_height()) == (69.5, 14, 28)        # the fourth of a row


def test_load_is_drawn_in_percent_of_each_kind(axis):
    figures.draw_load(axis, {"visual": torch.tensor([6, 2, 0, 0]), "text": torch.tensor([0, 0, 1, 1])}, "layer 2")
    heights = [bar.get_height() for bar in axis.patches]
    assert heights == [75, 25, 0, 0, 0, 0, 50, 50] and axis.lines[0].get_ydata()[0] == 25


def test_load_of_a_question_without_a_picture_has_one_kind_of_bar(axis):
    figures.draw_load(axis, {"visual": torch.zeros(4, dtype=torch.long), "text": torch.tensor([1, 1, 1, 1])})
    assert [bar.get_height() for bar in axis.patches] == [25] * 4


def test_memory_is_drawn_to_scale_with_its_numbers(axis):
    figures.draw_memory(axis, {"Tiny": (2560, 2560), "Small": (576, 4096)})
    assert sorted(bar.get_width() for bar in axis.patches) == [576, 2560, 2560, 4096]
    assert {text.get_text() for text in axis.texts} == {"576", "2,560", "4,096"}


def test_svg_is_whole_quiet_and_takes_the_pages_colour():
    drawn = figures.svg(figures.draw_memory, {"<b>Tiny": (2, 2)}, name="memory")
    tree = xml.fromstring(drawn)
    assert tree.tag.endswith("svg") and "currentColor" in drawn and "#010203" not in drawn
    assert "<b>" not in drawn and "&lt;b&gt;Tiny" in drawn                      # letters, and only letters
    assert not re.search(r"(?:href|src)=\"(?!#)", drawn)                        # points at nothing outside itself
    assert drawn == figures.svg(figures.draw_memory, {"<b>Tiny": (2, 2)}, name="memory")


def test_the_map_lights_the_boxes_asked_for():
    def lit(*here):
        axis = figures.where(*here).axes[0]
        return [text.get_text() for text in axis.texts if text.get_weight() == "bold"]
    assert lit("experts") == ["experts"]
    assert lit("vision", "tiles") == ["tiles", "vision\ntower"]
    assert len(lit()) == len(figures.PLACES) + 2        # the whole model, with question and embedding
    with pytest.raises(ValueError, match="the map has no brain; it has picture, tiles"):
        figures.where("brain")


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_is_drawn_token_by_token_with_its_padding(processor, training):
    talks = [(small.answered if training else lambda question, _: small.ask(question))(question, "the fox")
             for question in ("how many shapes are there?", "<image>?")]
    images = [[], [small.picture(42, 42)]]
    alone = [processor(talk, own, training) for talk, own in zip(talks, images, strict=True)]
    batch = processor.batch(alone)
    figure = figures.rows_of(batch, processor, shown=3)
    drawn = [(patch.get_facecolor(), round(patch.get_y())) for patch in figure.axes[0].patches]
    colour = matplotlib.colors.to_rgba
    learned = len(processor.tokenizer.encode("the fox", add_special_tokens=False).ids) + 1
    pictures = int(batch.image_mask.sum())
    assert drawn.count((colour(figures.LOCAL), 1)) == 3 < pictures      # of the picture, the first three
    for row, one in enumerate(alone):
        of_row = learned if training else 0
        assert drawn.count((colour(figures.ANSWER), row)) == of_row
        assert drawn.count((colour(figures.TEXT), row)) == one.input_ids.shape[1] - of_row - pictures * row
    assert drawn.count((colour("none"), 0)) + drawn.count((colour("none"), 1)) == 1         # the shorter row's padding
    right = [max(p.get_x() + p.get_width() for p in figure.axes[0].patches if round(p.get_y()) == row) for row in (0, 1)]
    assert right[0] == pytest.approx(right[1])


def found(**changes):
    """What bench would print of a machine that does 100 GFLOP/s and reads 10 GB/s."""
    return {
        "limits": {"matrix_gflops": 100.0, "memory_gb_per_second": 10.0},
        "measured": {"vision": 2.0, "decode": 5.0, "transformers: decode": 1.0},
        "fraction": {"vision": 0.8, "decode": 0.5, "transformers: decode": 0.1},
        "needs": {"vision": {"limit": "flops", "flops": 40e9, "bytes": 1e8},
                  "decode": {"limit": "bytes", "flops": 2e9, "bytes": 1e9},
                  "transformers: decode": {"limit": "bytes", "flops": 2e9, "bytes": 1e9}},
        "about": {"model": "tiny", "quantize": "int4", "dtype": "bfloat16", "pack": False, "threads": 2,
                  "processor": "p"}} | changes


def test_the_roofline_puts_each_figure_under_its_limit():
    axis, = figures.roofline(found()).axes
    dots = {tuple(line.get_xydata()[0]): line.get_markerfacecolor() for line in axis.lines if line.get_marker() == "o"}
    assert set(dots) == {(400.0, 80.0), (2.0, 10.0), (2.0, 2.0)}       # operations a byte, GFLOP/s
    assert dots[2.0, 2.0] == "white" != dots[2.0, 10.0]                 # a peer is hollow
    lines = [line.get_xydata() for line in axis.lines if line.get_linestyle() == "--"]
    assert {(x, top) for (x, _), (_, top) in lines} == {(400.0, 100.0), (2.0, 20.0)}       # up to the roof
    said = " ".join(text.get_text() for text in axis.texts)
    assert "vision  80%" in said and "transformers: decode  10%" in said and "int4" in axis.get_title(loc="left")


def test_the_roofline_is_drawn_from_the_last_line_of_what_bench_printed(tmp_path):
    (tmp_path / "bench.txt").write_text(f"a table\n{json.dumps(found())}\n", encoding="utf-8")
    command = [sys.executable, "-m", "minivl2.figures", tmp_path / "roof.png", tmp_path / "bench.txt"]
    subprocess.run(command, check=True)
    assert (tmp_path / "roof.png").stat().st_size > 10_000
