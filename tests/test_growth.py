"""Growth: more layers, and longer latents, change nothing at first, and then they learn."""

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


@pytest.mark.parametrize("latent", [13, 24, 40])
def test_a_model_with_longer_latents_says_the_same(latent):
    trainer = make()
    with torch.no_grad():
        for layer in trainer.model.decoder.layers:
            layer.attn.kv_norm.weight.uniform_(0.5, 1.5)
    wider, before = growth.widened(trainer.model, latent).eval(), trainer.model.config.language
    assert wider.config.language == dataclasses.replace(before, kv_lora_rank=latent)
    assert {layer.attn.kv_up.weight.shape[1] for layer in wider.decoder.layers} == {latent}
    batch = trainer.plan.lesson_at(0, trainer.processor).batch
    with torch.no_grad():
        assert torch.allclose(trainer.model.eval()(batch), wider(batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("latent", [3, 12])
def test_latents_only_become_longer(latent):
    with pytest.raises(ValueError, match=f"latents of {latent} numbers are no longer than those it has \\(12\\)"):
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
        assert (layer.attn.kv_down.weight[12:20].abs().amax(1) > 0).all()
