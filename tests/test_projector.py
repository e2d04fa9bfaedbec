"""The pixel shuffle and the MLP behind it."""

import dataclasses

import pytest
import reference
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from minivl2.config import ProjectorConfig
from minivl2.projector import Projector, pixel_shuffle


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_every_block_of_neighbours_becomes_one_vector(tiles, side, width, r):
    x = torch.arange(1.0, 1 + tiles * side**2 * width).view(tiles, side**2, width)
    assert torch.equal(pixel_shuffle(x, r), reference.pixel_shuffle(x, r))


def test_channels_are_outermost():
    a, b, c, d = torch.tensor([[1.0, -1], [2, -2], [3, -3], [4, -4]])
    assert pixel_shuffle(torch.stack((a, b, c, d))[None]).tolist() == [[[1, 2, 3, 4, -1, -2, -3, -4]]]


def test_an_odd_grid_is_padded_at_the_right_and_at_the_bottom():
    x = torch.arange(1.0, 10).view(1, 9, 1)     # 1 2 3 / 4 5 6 / 7 8 9
    assert pixel_shuffle(x).tolist() == [[[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]]


@given(st.integers(1, 8), st.integers(1, 5))
def test_the_order_is_that_of_torch_unfold(side, width):
    """The published code calls unfold."""
    x = small.numbers(2, side**2, width)
    image = x.transpose(1, 2).view(2, width, side, side)
    padded = F.pad(image, (0, side % 2, 0, side % 2))
    assert torch.equal(pixel_shuffle(x), F.unfold(padded, 2, stride=2).transpose(1, 2))


def test_patches_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="728 patches do not form a square"):
        pixel_shuffle(torch.zeros(1, 728, 4))


@torch.no_grad()
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(2, 3))
def test_the_projector_is_linear_layers_with_the_exact_gelu_between(depth, mlp_ratio, side, r):
    cfg = ProjectorConfig(input_dim=3, n_embed=5, depth=depth, mlp_ratio=mlp_ratio, downsample_ratio=r)
    projector = small.randomised(Projector(cfg), seed=side)
    with torch.no_grad():
        projector.layers[0].weight.mul_(3)      # far from 0, where the two GELUs differ most
    x = small.numbers(2, side**2, 3)
    assert_close(projector(x), reference.projector(x, projector.state_dict(), r))


@torch.no_grad()
def test_the_gelu_is_the_exact_one_and_not_the_towers():
    """The two differ by 5e-4 at most: too little to see in a picture, too much for a checkpoint."""
    projector = Projector(ProjectorConfig(input_dim=1, n_embed=1, downsample_ratio=1)).double()
    for p, value in zip(projector.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
        p.fill_(value)
    x = torch.tensor([[[2.0]]], dtype=torch.float64)
    assert projector(x).item() == pytest.approx(reference.gelu_exact(2.0), abs=1e-12)
    assert projector(x).item() != pytest.approx(reference.gelu_tanh(2.0), abs=1e-6)


def test_published_checkpoints_have_two_linear_layers():
    projector = Projector(dataclasses.replace(ProjectorConfig(), input_dim=3, n_embed=5))
    assert {n: tuple(p.shape) for n, p in projector.named_parameters()} == {
        "layers.0.weight": (5, 12), "layers.0.bias": (5,), "layers.2.weight": (5, 5), "layers.2.bias": (5,)}


def test_the_widths_are_those_of_the_configuration():
    cfg = ProjectorConfig(input_dim=3, n_embed=5, depth=3, mlp_ratio=2, downsample_ratio=3)
    assert {n: tuple(p.shape) for n, p in Projector(cfg).named_parameters()} == {
        "layers.0.weight": (10, 27), "layers.0.bias": (10,), "layers.2.weight": (10, 10), "layers.2.bias": (10,),
        "layers.4.weight": (5, 10), "layers.4.bias": (5,)}
