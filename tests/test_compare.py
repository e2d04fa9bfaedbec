"""Where two models part: damage of one module is found in that module, and in no other."""

import copy
import types

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minivl2 import projector, rope
from minivl2.compare import Call, difference, first_difference, tensors, trace
from minivl2.model import DeepSeekVL2

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def model():
    return small.randomised(DeepSeekVL2(small.config()))


@pytest.fixture(scope="module")
def batch(goldens):
    return small.processor(goldens)(small.ask("<image> what is it?"), [small.picture(80, 40)])


def compared(model, other, batch):
    return first_difference(trace(other, lambda m: m(batch)), trace(model, lambda m: m(batch)))


def test_a_model_and_its_copy_do_not_differ(model, batch):
    assert compared(model, copy.deepcopy(model), batch) is None


def test_a_changed_weight_is_found_in_the_module_that_holds_it(model, batch):
    """Every module that has weights of its own and is used, one after the other."""
    right, found = trace(model, lambda m: m(batch)), 0
    for name, module in model.named_modules():
        if name in right and name and any(True for _ in module.parameters(recurse=False)):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for p in other.get_submodule(name).parameters(recurse=False):
                    p.mul_(1.5)
            assert first_difference(trace(other, lambda m: m(batch)), right) == name
            found += 1
    assert found > 40


def test_wrong_code_between_modules_is_found_in_the_module_around_it(model, batch):
    """Of latent attention that turns the wrong way, every part is right; what is wrong is the whole."""
    other = copy.deepcopy(model)
    attention = other.decoder.layers[1].attn
    original = type(attention).forward

    def wrongly(self, x, rotation, seen, cache):
        cos, sin = rotation
        return original(self, x, (cos, -sin), seen, cache)
    attention.forward = types.MethodType(wrongly, attention)
    assert compared(model, other, batch) == "decoder.layers.1.attn"


def test_wrong_code_in_the_projector(model, batch, monkeypatch):
    right = trace(model, lambda m: m(batch))
    shuffle = projector.pixel_shuffle
    monkeypatch.setattr(projector, "pixel_shuffle", lambda *inputs: shuffle(*inputs).flip(-1))
    assert first_difference(trace(model, lambda m: m(batch)), right) == "projector"


def test_what_is_not_even_asked_again_stays_out(model, batch):
    """Everything after a mistake differs too: it is not named, and neither are modules that only one model has."""
    other = copy.deepcopy(model)
    other.decoder.layers[1].extra = nn.Linear(2, 2)
    with torch.no_grad():
        other.decoder.layers[0].attn_norm.weight.mul_(2)
        other.decoder.head.weight.mul_(2)
    calls = trace(other, lambda m: m(batch))
    assert first_difference(calls, trace(model, lambda m: m(batch))) == "decoder.layers.0.attn_norm"
    assert first_difference(calls, {}) is None


def call(given, gave):
    return Call([torch.tensor(given)], [torch.tensor(gave)])


def test_the_same_from_the_same_or_another_from_another_is_no_mistake():
    ours = {"a": [call([1.0], [2.0])], "b": [call([5.0], [9.0])], "c": [call([1.0], [4.0])], "d": [call([1.0], [7.0])]}
    theirs = {"a": [call([1.0], [2.0])], "b": [call([6.0], [8.0])], "c": [call([1.0], [3.0])], "d": [call([1.0], [8.0])]}
    assert first_difference(ours, theirs) == "c"
    assert first_difference(ours, theirs, tolerance=0.5) is None


def test_every_call_counts_and_in_both_directions():
    ours = {"a": [call([1.0], [2.0]), call([1.0], [3.0])], "b": [call([1.0], [2.0])]}
    theirs = {"b": [call([1.0], [0.5])], "a": [call([1.0], [2.0]), call([1.0], [2.9]), call([0.0], [0.0])]}
    assert first_difference(ours, theirs) == "a"
    assert first_difference(theirs, ours) == "b"


def test_the_same_means_up_to_the_last_digits():
    """Two right implementations add in another order. What was given may differ by as much as what is given on."""
    one, nearly, apart = call([1.0], [1.0]), call([1.00005], [1.00005]), call([1.00005], [1.5])
    assert first_difference({"a": [one]}, {"a": [nearly]}) is None
    assert first_difference({"a": [one]}, {"a": [apart]}) == "a"
    assert first_difference({"a": [one]}, {"a": [apart]}, tolerance=1e-6) is None       # it was given something else


def test_first_is_who_finished_first_whatever_the_names():
    ours, theirs = call([1.0], [2.0]), call([1.0], [3.0])
    names = ("z.x", "z", "a.b.c.d", "a", "m.m.m")
    for i in range(len(names)):
        calls = {name: [ours] for name in names[i:] + names[:i]}
        assert first_difference(calls, {name: [theirs] for name in sorted(names)}) == names[i]


def test_other_shapes_and_no_numbers_are_differences():
    nan, one, two = call([1.0], [NAN]), call([1.0], [1.0]), call([1.0], [1.0, 1.0])
    assert first_difference({"x": [nan]}, {"x": [one]}) == "x"
    assert first_difference({"x": [one]}, {"x": [nan]}) == "x"
    assert first_difference({"x": [two]}, {"x": [one]}) == "x"
    assert first_difference({"x": [Call(two.gave, one.gave)]}, {"x": [nan]}) is None     # given another shape


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=5), st.floats(1e-3, 1.0), st.floats(0.1, 1000))
def test_a_difference_is_relative_to_the_largest_number(values, by, scale):
    a = torch.tensor([*values, 100.0], dtype=torch.float64)
    b = a.clone()
    b[0] += by
    assert difference([scale * b], [scale * a]) == pytest.approx(by / 100, rel=1e-6)
    assert difference([a], [a]) == 0 == difference([torch.empty(0)], [torch.empty(0)])


def test_tensors_are_found_wherever_they_are(model):
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert [t.item() for t in tensors((a, {"x": [b]}, None, 3, rope.rotation, (c,)))] == [0, 1, 2]


def test_the_hooks_are_gone_afterwards(model, batch):
    with pytest.raises(RuntimeError):
        trace(model, lambda m: (_ for _ in ()).throw(RuntimeError))
    trace(model, lambda m: m(batch))
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_traced_is_what_it_was_then(model, batch):
    """Not what became of it when a later module changed it in place."""
    class Doubles(nn.Module):
        def forward(self, x):
            return x.mul_(2)
    twice = nn.Sequential(nn.Identity(), Doubles())
    calls = trace(twice, lambda m: m(torch.ones(1)))
    assert calls["0"][0].gave[0].item() == 1
