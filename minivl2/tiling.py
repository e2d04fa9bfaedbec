"""Dynamic tiling: choose a resolution for an image, then cut it into tiles the vision tower can see.

Paper    DeepSeek-VL2, arXiv:2412.10302, section 2 "Dynamic tiling strategy".
Lesson   lessons/01_tiles.ipynb          Tests   tests/test_tiling.py

The vision tower sees 384 x 384 pixels and nothing else. A page of text squeezed into that is illegible, so the
image is seen twice: once whole (the global view), and once enlarged to w x h tiles (the local view), where w and h
suit its shape. Sizes are (width, height) throughout, as in Pillow.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Size = tuple[int, int]


def effective_resolution(image: Size, candidate: Size) -> int:
    """Pixels of the image that survive when it is scaled to fit the candidate: never more than it has."""
    (width, height), (W, H) = image, candidate
    scale = min(W / width, H / height)
    return min(int(width * scale) * int(height * scale), width * height)


def select_best_resolution(image: Size, candidates: Sequence[Size]) -> Size:
    """The candidate that keeps most of the image's pixels; among equals, the one that pads least.

    This is the released model's rule. The paper's sentence ("minimise the padded area") is another rule: it sends
    640 x 480 to one tile, where this one sends it to 2 x 2 and keeps four times the detail. The first candidate
    wins a tie of both, so the order of the list matters.
    """
    if min(image) < 1:
        raise ValueError(f"an image of {image[0]}x{image[1]} has no pixels")
    if not candidates:
        raise ValueError("there are no candidate resolutions to choose from")

    def rank(candidate: Size) -> tuple[int, int]:
        kept = effective_resolution(image, candidate)
        wasted = candidate[0] * candidate[1] - kept
        return kept, -wasted

    return tuple(max(candidates, key=rank))     # max returns the first of equals


def least_padding(image: Size, candidates: Sequence[Size]) -> Size:
    """The paper's rule, for comparison: the candidate of which the enlarged image leaves the smallest area empty; among
    equals the first, so the smallest."""
    def padded(candidate: Size) -> float:
        (width, height), (W, H) = image, candidate
        scale = min(W / width, H / height)
        return round(W * H - width * height * scale**2, 6)      # equal areas shall be equal, whatever the rounding

    return tuple(min(candidates, key=padded))


def grid_of(image: Size, candidates: Sequence[Size], tile: int, rule: str = "released") -> Size:
    """(w, h): how many tiles across and down the chosen resolution has. rule: "released", or "paper" to compare."""
    choose = {"released": select_best_resolution, "paper": least_padding}[rule]
    width, height = choose(image, candidates)
    return width // tile, height // tile


def cut(image: Image.Image, grid: Size, tile: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB image -> (1 + w*h, 3, tile, tile) float32: the global view, then the local tiles in reading order.

    Both views keep the aspect ratio and are padded, centred, with the colour of the mean: zero once normalised.
    Values are (x / 255 - mean) / std, so from -1 to 1 for the published 0.5 and 0.5.
    """
    w, h = grid
    grey = tuple(int(255 * m) for m in mean)        # 0.5 -> 127, not 127.5: the published processor truncates
    whole = normalised(fit(image, (tile, tile), grey), mean, std)
    local = normalised(fit(image, (w * tile, h * tile), grey), mean, std)
    return torch.cat((whole[None], split(local, grid)))


def split(view: Tensor, grid: Size) -> Tensor:
    """(3, h*t, w*t) -> (w*h, 3, t, t): the tiles of a local view, in reading order."""
    w, h = grid
    tiles = view.unflatten(2, (w, -1)).unflatten(1, (h, -1))        # (3, h, t, w, t)
    return tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)


def fit(image: Image.Image, size: Size, colour: tuple[int, ...]) -> Image.Image:
    """The image as large as it fits into this size, its shape kept, centred on the colour."""
    shorter = min(size[0] * image.height / image.width, size[1] * image.width / image.height)
    if shorter <= 0.5:      # Pillow would round the shorter side to nothing
        raise ValueError(
            f"an image of {image.width}x{image.height} is too thin: scaled to {size[0]}x{size[1]} pixels, "
            "nothing of its shorter side is left. Crop it into parts first.")
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=colour)


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB image -> (3, height, width) float32: (x / 255 - mean) / std, each colour with its own."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255          # (3, height, width)
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
