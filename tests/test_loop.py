"""How busy the experts are, as minivl2/training/loop.py measures it, and who teaches to see. The loop: test_training.py."""

import pytest
import torch

from minivl2.experts import Routing
from minivl2.training import loop


def routing(chosen, experts):
    """Of tokens that choose these experts."""
    chosen = torch.tensor(chosen)
    return Routing(chosen, torch.ones(chosen.shape) / 2, torch.full((len(chosen), experts), 1 / experts))


EVEN = routing([[0, 1], [2, 3]], 4)
CROWDED = routing([[0, 1], [0, 2], [0, 3], [0, 1]], 4)          # 4, 2, 1, 1: a fair share is 2
ONE_IDLE = routing([[0], [1], [2], [0]], 4)                     # 2, 1, 1, 0: a fair share is 1


def test_a_fair_share_is_one():
    assert loop.relative_load(EVEN) == [1.0] * 4
    assert loop.relative_load(CROWDED) == [2.0, 1.0, 0.5, 0.5]
    assert loop.relative_load(ONE_IDLE) == [2.0, 1.0, 1.0, 0.0]


def test_the_heaviest_load_is_that_of_the_busiest_expert_in_shares():
    assert loop.heaviest_load([EVEN]) == 1.0
    assert loop.heaviest_load([CROWDED]) == 2.0


def test_the_heaviest_load_of_a_model_is_that_of_its_worst_layer_wherever_it_is():
    worst = routing([[0], [0], [0], [1]], 4)
    for layers in ([worst, EVEN, CROWDED], [EVEN, worst], [EVEN, EVEN, worst]):
        assert loop.heaviest_load(layers) == 3.0


def test_the_heaviest_load_does_not_mix_layers():
    """Expert 0 of one layer is another network than expert 0 of the next: what one lacks, the other cannot make up for."""
    low, high = routing([[0], [1]], 4), routing([[2], [3]], 4)
    assert loop.heaviest_load([low, high]) == 2.0


@pytest.mark.parametrize("experts, k", [(8, 2), (64, 6), (5, 1)])
def test_the_heaviest_load_of_all_tokens_at_the_same_experts_is_experts_over_k(experts, k):
    same = routing([list(range(k))] * 7, experts)
    assert loop.heaviest_load([same]) == pytest.approx(experts / k)


def test_the_heaviest_load_does_not_depend_on_weights_or_on_how_many_tokens_there_are():
    twice = Routing(*(torch.cat((part, part)) for part in CROWDED))
    unequal = CROWDED._replace(weights=torch.tensor([[0.1, 0.9]] * 4))
    assert loop.heaviest_load([twice]) == loop.heaviest_load([unequal]) == 2.0


def test_the_heaviest_load_of_a_model_without_experts_is_one():
    assert loop.heaviest_load([]) == 1.0


def test_the_heaviest_load_is_a_plain_number():
    """It is written into a file as JSON."""
    assert type(loop.heaviest_load([CROWDED])) is float


@pytest.mark.parametrize(("plan", "teacher"), [
    (loop.Plan(steps=1), "sight"), (loop.Plan(steps=1, start="weights/toy"), "sharper"),
    (loop.Plan(steps=1, course="paper"), "contrast")], ids=["new", "trained", "paper"])
def test_an_eye_that_serves_a_decoder_is_taught_otherwise_than_a_new_one(monkeypatch, plan, teacher):
    asked = []
    for name in ("sight", "sharper", "contrast"):
        monkeypatch.setattr(getattr(loop, name), "learn", lambda *_, name=name, **__: asked.append(name))
    plan.see(None, None, 1)
    assert asked == [teacher]
