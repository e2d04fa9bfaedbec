"""Growth: more layers change nothing at first, and then they learn."""

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


def test_it_shares_nothing_with_the_model_that_it_grew_from():
    trainer = make()
    before, deeper = weights(trainer), growth.deepened(trainer.model, 1, 1)
    with torch.no_grad():
        for parameter in deeper.parameters():
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
