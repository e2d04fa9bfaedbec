"""Sight: the vision tower learns to tell what is shown."""

import math

import pytest
import torch
from test_training import assert_same, make, weights

from minivl2.batch import IGNORED
from minivl2.training import shown, sight
from minivl2.training.tokenizer import spans, spellings


def test_learning_to_see_is_repeatable_and_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(sight, "BATCH", 8)
    first, second = make(), make()
    losses = [sight.learn(trainer.model, trainer.processor, 0, steps=40, show=False) for trainer in (first, second)]
    assert_same(weights(first), weights(second))
    untrained = make()
    before = sight.Sight(untrained.model, untrained.processor).loss(*sight.batch(untrained.processor, 0, 39))
    assert losses[0] == losses[1] < 0.8 * before.item()
    assert torch.equal(first.model.decoder.head.weight, first.model.decoder.embed.weight)


@pytest.mark.parametrize("latent", [True, False], ids=["latent", "multi-head"])
def test_a_head_fetches_what_it_adds_on_a_token_that_looks_at_itself(latent):
    trainer = make(use_mla=latent)
    asked, D = sight.Sight(trainer.model, trainer.processor), trainer.model.config.language.hidden_size
    x, project = torch.randn(5, D), asked.attn.o_proj.weight
    fetched, whole = asked.fetched(x), project.detach().clone()
    alone = asked.norm(x)[:, None], asked.rotation(torch.zeros(5, 1), x), torch.ones(5, 1, 1, 1, dtype=torch.bool)
    for head in range(asked.heads):
        project.data = torch.zeros_like(whole)
        project.data.unflatten(1, (asked.heads, -1))[:, head] = whole.unflatten(1, (asked.heads, -1))[:, head]
        torch.testing.assert_close(asked.attn(*alone)[:, 0], fetched[:, head])


def test_words_are_said_by_the_first_head_and_each_edge_by_one():
    trainer = make()
    asked = sight.Sight(trainer.model, trainer.processor)
    losses = asked.losses(*sight.batch(trainer.processor, 0, 0, lessons=shown.NO_LETTERS))

    def heads_that_learn(name):
        gradient, = torch.autograd.grad(losses[name], asked.attn.o_proj.weight, retain_graph=True)
        return gradient.unflatten(1, (asked.heads, -1)).abs().amax((0, 2)).nonzero().flatten().tolist()

    assert heads_that_learn("said shape") == heads_that_learn("said colour") == [0]
    assert heads_that_learn("digits") == [0, 1, 2, 3]


def test_the_decoder_begins_with_what_the_last_layer_fetches_and_nothing_else():
    """A lone token gets what its own value adds, of all heads together, and no layer before has changed it."""
    trainer = make()
    asked, decoder = sight.Sight(trainer.model, trainer.processor), trainer.model.decoder
    sight.settle(trainer.model, trainer.processor)
    x = torch.randn(3, 1, trainer.model.config.language.hidden_size)
    out, _ = decoder(x, torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(out, decoder.norm(x + asked.fetched(x[:, 0]).sum(1, keepdim=True)))


def test_of_an_empty_tile_only_letters_are_asked_that_there_are_none():
    trainer = make()
    asked = sight.Sight(trainer.model, trainer.processor)
    tiles, _ = shown.draw(trainer.processor, "0")
    window = shown.Window(trainer.processor, (56, 56), (1, 1), 0)
    blank = shown.Shown(*(part[None] for part in shown.nothing(window, trainer.processor)))
    with torch.no_grad():
        losses = asked.losses(tiles[None], blank)
    assert losses.pop("letters") > 0 and losses.pop("glyphs") > 0 and set(map(float, losses.values())) == {0.0}


def test_tokens_are_asked_of_how_many_things_they_hold_the_middle():
    """An eye that says 3 of every token is wrong by 3 where none lies, by 2 where one does. Of letters nothing is asked."""
    trainer = make()
    asked = sight.Sight(trainer.model, trainer.processor)
    tiles, told = sight.batch(trainer.processor, 0, 0, lessons=((1.0, {"crowd": 1, "page": 1}),))
    with torch.no_grad():
        asked.head_middles.weight.zero_()
        asked.head_middles.bias.fill_(3)
        loss = asked.losses(tiles, told)["middles"].item()
    middles = [n for n in told.middles.flatten().tolist() if n != IGNORED]
    assert 0 < len(middles) < told.middles.numel() and sum(middles) > 0
    assert loss == pytest.approx(sum((3 - n) ** 2 for n in middles) / len(middles))


def test_patches_are_asked_what_thing_is_on_them_and_how_far_it_reaches():
    """An eye that says of every patch what is true of the first: losses of nothing for that patch alone."""
    trainer = make()
    asked = sight.Sight(trainer.model, trainer.processor, letters=False)
    tile, told = shown.draw(trainer.processor, "crowd", lessons=shown.NO_LETTERS)
    on = (told.things[:, 0] >= 0).nonzero().flatten()
    named = zip(shown.NAMES.values(), told.things[on[0]], strict=True)
    truth = torch.cat([*(torch.eye(len(words))[at] * 99 for words, at in named), told.reach[on[0]]])
    with torch.no_grad():
        asked.head_things.weight.zero_()
        asked.head_things.bias.copy_(truth)
        alone = told._replace(things=told.things.index_fill(0, on[1:], IGNORED))
        for things, right in ((alone, True), (told, False)):
            losses = asked.losses(tile[None], shown.Shown(*(part[None] for part in things)))
            of_patches = [losses[name].item() for name in ("patch colour", "patch shape", "patch size", "reach")]
            assert (sum(of_patches) < 1e-6) == right, of_patches
    assert "letters" not in losses and "glyphs" not in losses


def test_words_that_are_shown_are_told_from_those_that_are_not():
    """Either of two words that are shown is right: the best a token can do is to give each a half."""
    either = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    sure = torch.tensor([[9.0, 9.0, -9.0], [5.0, 0.0, 0.0]])
    assert sight.choice_loss(sure, either).tolist() == [pytest.approx(math.log(2), abs=1e-3)]
    assert sight.choice_loss(-sure, either).item() > 10
    assert len(sight.choice_loss(sure, torch.zeros(2, 3))) == 0


def test_words_end_with_one_embedding_for_all_spellings():
    trainer = make()
    sight.settle(trainer.model, trainer.processor)
    embed = trainer.model.decoder.embed.weight
    whole = [word for words in shown.NAMES.values() for word in words      # this small tokenizer cuts the others in pieces
             if all(len(spans(trainer.processor.tokenizer, before + word)) == 1 for before in ("", " "))]
    assert len(whole) > 3
    for word in whole:
        inside, first = spellings(trainer.processor.tokenizer, word)
        assert inside != first and torch.equal(embed[inside], embed[first])
