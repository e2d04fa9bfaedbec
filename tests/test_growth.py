"""Growth: more layers change nothing at first, and then they learn."""

import pytest
import torch
from test_training import make, weights

from minivl2.training import growth, loop


@pytest.mark.parametrize("layers", [1, 3])
def test_a_deeper_model_says_the_same(layers):
    trainer = make()
    deeper = growth.deepened(trainer.model, layers).eval()
    assert deeper.config.vision.layers == trainer.model.config.vision.layers + layers == len(deeper.vision.blocks)
    batch = trainer.plan.lesson_at(0, trainer.processor).batch
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(batch), deeper(batch))


def test_it_shares_nothing_with_the_model_that_it_grew_from():
    trainer = make()
    before, deeper = weights(trainer), growth.deepened(trainer.model, 1)
    with torch.no_grad():
        for parameter in deeper.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_the_new_layers_learn():
    trainer = make()
    grown = loop.Trainer(growth.deepened(trainer.model, 1), trainer.processor, loop.Plan(steps=4, batch=3, dtype="float32"))
    for step in range(4):
        grown.train_step(grown.plan.lesson_at(step, grown.processor))
    block = grown.model.vision.blocks[-1]
    assert all(matrix.weight.abs().max() > 0 for matrix in (block.attn.proj, block.mlp.fc2))
