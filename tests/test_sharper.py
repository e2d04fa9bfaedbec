"""Sharper: an eye learns to see better and still says it as before."""

import torch
from test_training import assert_same, make, weights

from minivl2.batch import IGNORED
from minivl2.training import growth, sharper, sight


def learned(trainer, steps=4, listening=2):
    """The names of what learning changed."""
    before = weights(trainer)
    sharper.learn(trainer.model, trainer.processor, 0, steps, show=False, listening=listening)
    return {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])}


def test_the_eye_learns_and_the_decoder_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(sight, "BATCH", 4)
    trainer = make()
    assert learned(trainer) == {name for name in weights(trainer) if name.startswith(("vision.", "projector."))}


def test_it_is_repeatable_and_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(sight, "BATCH", 4)
    first, second = make(), make()
    losses = [sharper.learn(trainer.model, trainer.processor, 0, steps, show=False, listening=10)
              for trainer, steps in ((first, 30), (second, 30), (make(), 1))]
    assert_same(weights(first), weights(second))
    assert losses[0] == losses[1] < 0.9 * losses[2]


def test_while_the_heads_listen_nothing_else_learns_and_afterwards_they_do_not(monkeypatch):
    """What may learn in the last listening step, and in the last learning one."""
    monkeypatch.setattr(sight, "BATCH", 4)
    steps = []
    step = sharper.optimizers.Learner.step

    def watched(learner, rate):
        steps.append({name for name, p in learner.working.named_parameters() if p.requires_grad})
        return step(learner, rate)

    monkeypatch.setattr(sharper.optimizers.Learner, "step", watched)
    trainer = make()
    sharper.learn(trainer.model, trainer.processor, 0, steps=2, show=False, listening=2)
    others = {"head_glyphs", "head_things", "head_rows", "head_scale"}
    assert {name.split(".")[0] for name in steps[1]} == {"head_letters", "head_edges", *others}
    assert {name.split(".")[0] for name in steps[3]} == {"vision", "projector", *others}


def test_what_is_kept_is_the_distance_from_what_the_tokens_were():
    trainer = make()
    asked = sharper.Sharper(trainer.model)
    tiles, shown = sight.batch(trainer.processor, 0, 0)
    with torch.no_grad():
        assert asked.losses(tiles, shown)["keep"] == 0
        tokens = asked.projector(asked.vision(tiles)).flatten(0, 1)
        asked.projector.layers[-1].bias.add_(0.3)
        kept = asked.losses(tiles, shown)["keep"]
    variance = sum(((column - column.mean()) ** 2).sum() / (len(column) - 1) for column in tokens.T) / tokens.shape[1]
    torch.testing.assert_close(kept, 0.3**2 / variance)


def test_what_is_asked_of_rows_is_which_words_are_written_in_each():
    """-log of the part that falls on the words of a row, of each alike, row by row."""
    trainer = make()
    asked = sharper.Sharper(trainer.model)
    tiles, shown = sight.batch(trainer.processor, 0, 0, lessons=((1.0, {"tables": 1}),))
    assert (shown.rows.any(-1).sum(-1) == 2).any()          # two lines of a table in one token
    with torch.no_grad():
        loss = asked.losses(tiles, shown)["rows"]
        tokens = asked.projector(asked.vision(tiles)).flatten(0, 1)
        each = []
        for token, rows in zip(tokens, shown.rows.flatten(0, 1), strict=True):
            for said, words in zip(asked.head_rows(token).chunk(2), rows, strict=True):
                chances = (asked.embed.weight @ said * asked.head_scale.exp()).softmax(0)
                each += [-chances[words.bool()].log().mean()] * bool(words.any())
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_it_moves_less_when_it_is_kept(monkeypatch):
    monkeypatch.setattr(sight, "BATCH", 4)
    moved = []
    for keep in (0, 1000):
        monkeypatch.setattr(sharper, "KEEP", keep)
        trainer = make()
        tiles, _ = sight.batch(trainer.processor, 1, 0)
        eye = torch.nn.Sequential(trainer.model.vision, trainer.model.projector)
        before = eye(tiles).detach()
        sharper.learn(trainer.model, trainer.processor, 0, steps=10, show=False, listening=2)
        moved.append((eye(tiles) - before).square().mean().item())
    assert moved[1] < 0.5 * moved[0]


def test_a_deeper_eye_is_kept_near_what_the_smaller_was():
    trainer = make()
    asked = sharper.Sharper(growth.deepened(trainer.model, 1))
    tiles, shown = sight.batch(trainer.processor, 0, 0)
    with torch.no_grad():
        torch.testing.assert_close(asked.was(tiles), trainer.model.projector(trainer.model.vision(tiles)))
        assert asked.losses(tiles, shown)["keep"] == 0


def test_of_a_page_seen_whole_nothing_is_asked_but_that_it_looks_as_before():
    trainer = make()
    asked = sharper.Sharper(trainer.model)
    written = ((1.0, {"documents": 1}),)
    tiles, shown = sight.batch(trainer.processor, 0, 0, lessons=written, pages=1.0)
    assert (shown.letters == IGNORED).all() and not shown.words.any()
    with torch.no_grad():
        losses = asked.losses(tiles, shown)
        assert set(map(float, losses.values())) == {0.0}
        asked.projector.layers[-1].bias.add_(1)
        assert {name for name, loss in asked.losses(tiles, shown).items() if loss > 0} == {"keep"}
    _, shown = sight.batch(trainer.processor, 0, 0, lessons=written, pages=0.0)
    assert (shown.letters != IGNORED).all() and shown.words.any()
