"""What training costs, against hand counts and against what the paper says it took."""

import pytest

from minivl2 import Config
from minivl2.training import cluster


@pytest.mark.parametrize("name", cluster.PAPER)
def test_the_papers_days_are_a_plausible_part_of_the_machines_peak(name):
    """Large mixtures of experts reach between an eighth and a half of it. A missing factor of 2 would show."""
    published = cluster.PAPER[name]
    reached = cluster.training(Config.named(name), published.machines, published.batch).ideal_days / published.days
    assert 0.125 < reached < 0.5


def test_the_three_sizes_agree_on_how_much_of_the_peak_is_reached():
    """The paper's machine-days grow with the size as the counted work does."""
    reached = [cluster.training(Config.named(name), p.machines, p.batch).ideal_days / p.days
               for name, p in cluster.PAPER.items()]
    assert max(reached) < 1.5 * min(reached)


def test_tiny_by_hand():
    """Weights: 3,370,501,440, of which a word visits 574,130,560 and a patch 412,987,248 (minivl2 inspect tiny)."""
    words = 994_656_368 - 412_987_248 - 7_539_200
    attention = 12 * 10 * (128 + 128) * 2048
    patches = (27 / 14) ** 2
    seen = 0.5 * (patches * 412_987_248 + 7_539_200)
    assert cluster.operations_a_token(Config.named("tiny")) == pytest.approx(6 * (words + attention + seen))
    one = cluster.training(Config.named("tiny"), machines=1, batch=8)
    assert one.memory == 16 * 3_370_501_440 / 8
    assert one.gathered == 6 * 3_370_501_440 * 7 / 8
    assert one.travelled == 8 * 11 * 6 * 1280 * 4096       # there and back, twice, 2 bytes; 11 layers, 6 experts


def test_twice_the_machines_take_half_the_time_and_memory():
    config = Config.named("base")
    one, two = (cluster.training(config, machines, 3360) for machines in (21, 42))
    assert two.ideal_days == pytest.approx(one.ideal_days / 2) and two.memory == one.memory / 2
    assert two.operations == one.operations


def test_the_report_says_what_it_assumes():
    text = cluster.report("base")
    assert "14.0 days" in text and "42 machines" in text and "50% of the tokens are visual" in text
    assert "28.0 days" in cluster.report("base", 21)
