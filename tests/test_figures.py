"""The pictures that explain the model are drawn from the model's own numbers."""

from minivl2 import Config, figures, toyworld
from minivl2.visual_tokens import count


def test_the_overview_draws_one_square_for_each_visual_token():
    sample, config = toyworld.draw("overview", "scenes", (2, 2)), Config.named("toy")
    figure = figures.overview(sample, config)
    tokens = figure.subfigs[2].axes[0]
    assert len(tokens.patches) == count((2, 2), config.tokens_per_side)
    assert str(count((2, 2), config.tokens_per_side)) in tokens.get_title()
    assert len(figure.subfigs[1].subfigs[1].axes) == 4      # four local tiles
