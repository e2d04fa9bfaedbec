"""Tests of minivl2/training/report.py. Its pictures of one run are tested with the loop, in test_training.py."""

import pytest
from matplotlib.colors import to_rgba

from minivl2.training import report
from minivl2.training.evaluation import interval

RESULTS = {
    "with": {"scores": {"count": 0.5, "box": 1.0}, "guess": {"count": 0.25, "box": 0.0}, "n": {"count": 50, "box": 20}},
    "without": {"scores": {"count": 0.2, "box": 0.0}, "guess": {"count": 0.25, "box": 0.0}, "n": {"count": 50, "box": 20}},
}
METRICS = {name: [{"step": 10 * i, "loss": height, "load": 2 * height, "abilities": {"count": 3 * height}}
                  for i in range(1, 6)] for name, height in (("with", 1.0), ("without", 2.0))}


# smoothing


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert report.smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert report.smooth([4.0, 0.0])[0] == 4.0


def test_smoothing_is_a_mean_in_which_older_values_count_less():
    values, memory = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0], 0.7
    for i, smoothed in enumerate(report.smooth(values, memory)):
        weights = [memory ** (i - j) for j in range(i + 1)]
        assert smoothed == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights))


def test_smoothing_without_memory_changes_nothing_and_with_a_perfect_one_is_the_plain_mean():
    values = [3.0, 1.0, 5.0]
    assert report.smooth(values, 0.0) == values
    assert report.smooth(values, 1.0) == pytest.approx([3.0, 2.0, 3.0])


def test_smoothing_remembers_twenty_values_unless_told_otherwise():
    assert report.smooth([0.0] * 999 + [1.0])[-1] == pytest.approx(1 / 20)


def test_smoothing_leaves_its_values_as_they_were_and_of_nothing_makes_nothing():
    values = [3.0, 1.0, 5.0]
    report.smooth(values)
    assert values == [3.0, 1.0, 5.0] and report.smooth([]) == []


# comparisons


def axes_of(figure):
    return {axis.get_title() or "scores": axis for axis in figure.get_axes() if axis.axison}


def test_each_score_has_its_interval_drawn_through_it():
    axis = axes_of(report.comparison("title", RESULTS, METRICS))["scores"]
    dots = {line.get_label(): line for line in axis.lines if line.get_marker() == "o"}
    for name, result in RESULTS.items():
        assert list(dots[name].get_xdata()) == [result["scores"]["count"], result["scores"]["box"]]
        (drawn,) = [c for c in axis.collections if tuple(c.get_colors()[0][:3]) == to_rgba(dots[name].get_color())[:3]]
        for segment, ability in zip(drawn.get_segments(), ("count", "box"), strict=True):
            assert segment[:, 0] == pytest.approx(interval(result["scores"][ability], result["n"][ability]))


def test_a_run_has_one_colour_in_all_its_curves():
    axes = axes_of(report.comparison("title", RESULTS, METRICS))
    colour = {line.get_label(): line.get_color() for line in axes["scores"].lines if line.get_marker() == "o"}
    assert len(set(colour.values())) == 2
    for title, factor in (("loss of all answers", 1), ("load of the busiest expert", 2), ("loss: count", 3)):
        for name, height in (("with", 1.0), ("without", 2.0)):
            mine = [line for line in axes[title].lines if line.get_color() == colour[name]]
            assert len(mine) == 2 and all(line.get_ydata() == pytest.approx([factor * height] * 5) for line in mine)


def test_the_best_score_stands_inside_the_axis():
    """A score of 1 is not to be cut off."""
    low, high = axes_of(report.comparison("title", RESULTS, METRICS))["scores"].get_xlim()
    assert low < 0 and high > 1
