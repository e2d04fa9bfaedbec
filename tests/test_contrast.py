"""Tests of minivl2/training/contrast.py against the paper's sums in plain loops, and of what it learns."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivl2 import build
from minivl2.config import Config
from minivl2.processor import Processor, ProcessorConfig
from minivl2.training import contrast
from minivl2.training.tokenizer import sentences, train_tokenizer


@pytest.fixture(scope="module")
def processor():
    config = Config.named("toy")
    return Processor(train_tokenizer(sentences(), config.language.vocab_size), ProcessorConfig.of(config))


@given(st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 20), st.floats(-12, 2), st.integers(0, 2**16))
def test_every_pair_is_judged_alone(n, width, t, b, seed):
    generator = torch.Generator().manual_seed(seed)
    seen, said = torch.randn(2, n, width, generator=generator, dtype=torch.float64)
    same = torch.eye(n, dtype=torch.bool) | (torch.rand(n, n, generator=generator) < 0.2)
    total = 0.0
    for i in range(n):
        for j in range(n):
            likeness = sum(seen[i] * said[j]) / (sum(seen[i] ** 2) * sum(said[j] ** 2)) ** 0.5
            z = 1 if same[i, j] else -1
            total += math.log(1 + math.exp(-z * (t * likeness.item() + b))) / n
    found = contrast.pairwise(seen, said, same, torch.tensor(t, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert found.item() == pytest.approx(total, rel=1e-6)


def test_padding_does_not_change_what_a_caption_says(processor):
    torch.manual_seed(0)
    model = contrast.Contrast(build("toy")).eval()
    tiles, captions = contrast.batch(processor, 0, 0)
    some = slice(0, 6)
    tight = captions[some][:, : int((captions[some] >= 0).sum(1).max())]
    wide = torch.nn.functional.pad(tight, (0, contrast.LONGEST - tight.shape[1]), value=-1)
    torch.testing.assert_close(model.loss(tiles[some], tight), model.loss(tiles[some], wide))


def test_pictures_that_deserve_the_same_caption_are_no_contradiction(processor):
    """If two of four captions are equal, telling them apart is not asked for."""
    tiles, captions = contrast.batch(processor, 0, 0)
    captions[1] = captions[0]
    seen = {}
    original = contrast.pairwise

    def spy(*arguments):
        seen["same"] = arguments[2]
        return original(*arguments)
    contrast.pairwise = spy
    try:
        contrast.Contrast(build("toy")).loss(tiles[:4], captions[:4])
    finally:
        contrast.pairwise = original
    assert seen["same"][0, 1] and seen["same"][1, 0] and seen["same"].sum() >= 6


def test_it_learns_which_caption_belongs_to_which_picture(processor):
    torch.manual_seed(0)
    model = build("toy")
    module = contrast.Contrast(model)
    batch = [part[:16] for part in contrast.batch(processor, 0, 0)]
    before = module.loss(*batch).item()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    for _ in range(60):
        module.loss(*batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert module.loss(*batch).item() < 0.3 * before


def test_only_the_vision_tower_learns(processor, monkeypatch):
    monkeypatch.setattr(contrast, "BATCH", 4)
    torch.manual_seed(0)
    model = build("toy")
    before = {name: p.clone() for name, p in model.named_parameters()}
    contrast.learn(model, processor, seed=0, steps=3, show=False)
    changed = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"vision"}
