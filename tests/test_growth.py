"""Growth: more layers change nothing at first, longer latents next to nothing; and then they learn."""

import dataclasses

import pytest
import torch
from test_training import make, weights

from minivl2.training import growth, loop


@pytest.mark.parametrize(("vision", "decoder"), [(0, 0), (1, 0), (3, 0), (0, 1), (2, 2)])
def test_a_deeper_model_says_the_same(vision, decoder):
    trainer = make()
    deeper = growth.deepened(trainer.model, vision, decoder).eval()
    before = trainer.model.config
    assert deeper.config.vision.layers == before.vision.layers + vision == len(deeper.vision.blocks)
    assert deeper.config.language.num_hidden_layers == before.language.num_hidden_layers + decoder
    assert len(deeper.decoder.layers) == len(trainer.model.decoder.layers) + decoder
    batch = trainer.plan.lesson_at(0, trainer.processor).batch
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(batch), deeper(batch))


@pytest.mark.parametrize("latent", [13, 24, 32])
def test_a_model_with_longer_latents_begins_with_what_it_said(latent, monkeypatch):
    """The fainter the new numbers, the nearer to the old answers: only the norm knows of them."""
    trainer = make()
    with torch.no_grad():
        for layer in trainer.model.decoder.layers:
            layer.attn.kv_norm.weight.uniform_(0.5, 1.5)
    before, batch = trainer.model.config.language, trainer.plan.lesson_at(0, trainer.processor).batch
    with torch.no_grad():
        said = trainer.model.eval()(batch)
        for faint in (0.3, 1e-3):
            monkeypatch.setattr(growth, "FAINT", faint)
            wider = growth.widened(trainer.model, latent).eval()
            assert wider.config.language == dataclasses.replace(before, kv_lora_rank=latent)
            assert {layer.attn.kv_up.weight.shape[1] for layer in wider.decoder.layers} == {latent}
            off = (wider(batch) - said).abs() / said.std()
            assert off.mean() < 0.2 if faint == 0.3 else off.max() < 1e-3


def test_the_new_numbers_of_latents_show_what_the_old_ones_did_not():
    old = make().model
    for layer, before in zip(growth.widened(old, 32).decoder.layers, old.decoder.layers, strict=True):
        shown, new, rope = layer.attn.kv_down.weight.split([12, 20, 4])
        assert torch.equal(torch.cat((shown, rope)), before.attn.kv_down.weight)
        assert (new @ shown.T).abs().max() < 1e-5 and torch.linalg.matrix_rank(torch.cat((shown, new))) == 32


@pytest.mark.parametrize("latent", [3, 12, 33])
def test_latents_become_longer_and_at_most_as_long_as_tokens(latent):
    with pytest.raises(ValueError, match=f"latents have 12 numbers here, .* up to the 32 of a token; not {latent}"):
        growth.widened(make().model, latent)


@pytest.mark.parametrize("grown", [lambda model: growth.deepened(model, 1, 1), lambda model: growth.widened(model, 20)])
def test_it_shares_nothing_with_the_model_that_it_grew_from(grown):
    trainer = make()
    before, larger = weights(trainer), grown(trainer.model)
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_the_new_layers_learn():
    trainer = make()
    model = growth.deepened(trainer.model, 1, 1)
    plan = loop.Plan(steps=4, batch=3, dtype="float32", course="more")          # in which nothing is frozen
    grown = loop.Trainer(model, trainer.processor, plan)
    for step in range(4):
        grown.train_step(grown.plan.lesson_at(step, grown.processor))
    block = grown.model.vision.blocks[-1]
    layer = grown.model.decoder.layers[-1]
    assert all(matrix.weight.abs().max() > 0 for matrix in (
        block.attn.proj, block.mlp.fc2, layer.attn.o_proj, layer.mlp.shared.down_proj))


def test_the_new_numbers_of_latents_learn():
    trainer = make()
    model = growth.widened(trainer.model, 20)
    grown = loop.Trainer(model, trainer.processor, loop.Plan(steps=4, batch=3, dtype="float32", course="more"))
    for step in range(4):
        grown.train_step(grown.plan.lesson_at(step, grown.processor))
    for layer in grown.model.decoder.layers:
        assert (layer.attn.kv_up.weight[:, 12:].abs().amax(0) > 0).all()
