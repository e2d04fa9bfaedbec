"""Guidance: which heads are told where to look, how they are guided, and what is learned from it."""

import dataclasses
import math

import pytest
import torch
from test_training import make
from torch.testing import assert_close

import minivl2
from minivl2.attention import attend, shares
from minivl2.training import curriculum, growth, guidance, looking, loop
from minivl2.training.curriculum import Stage


def with_layers(layers):
    small = make()
    language = dataclasses.replace(small.model.config.language, num_hidden_layers=layers)
    model = minivl2.build(dataclasses.replace(small.model.config, language=language))
    return loop.Trainer(model, small.processor, small.plan)


@pytest.fixture(scope="module")
def trainer():
    """Of four layers, so that the last three are not all."""
    return with_layers(4)


@pytest.fixture(scope="module")
def deep():
    """Of five: the last one looks closer."""
    return with_layers(5)


def told(trainer, step=0, kind="tables"):
    stage = Stage(1.0, {kind: 1}, ((2, 1),), looking=1.0)
    return curriculum.lesson(trainer.processor, 0, step, stage, 3)


@pytest.mark.parametrize("kind", ["tables", "charts", "grounding"])
@pytest.mark.parametrize("layers", [4, 5])
def test_the_loss_is_that_of_one_head_each(request, monkeypatch, kind, layers):
    """Each weight by a plain softmax, tokens one by one. Of five layers, the last looks closer."""
    trainer = request.getfixturevalue("deep" if layers == 5 else "trainer")
    lesson, calls = told(trainer, kind=kind), []

    def heard(q, k, seen, scale):
        calls.append((q.detach(), k.detach(), seen, scale))
        return shares(q, k, seen, scale)

    monkeypatch.setattr("minivl2.training.guidance.shares", heard)
    with guidance.listening(trainer.model) as given:
        trainer.model.loss(lesson.batch)
    wanted, told_ = 0.0, lesson.told
    assert len(calls) == layers - 1
    first, second, third, *closer = calls
    heads = [(first, 0, told_.names), (first, 0, told_.said), (second, 1, told_.left), (second, 0, told_.above),
             (third, 0, told_.answers), (third, 1, told_.top), (third, 2, told_.right), (third, 3, told_.bottom),
             (second, 2, told_.again), (second, 3, told_.before), (second, 0, told_.before_of_colour),
             (second, 1, told_.before_of_shape), (third, 0, told_.onward), (third, 0, told_.starting)]
    for fourth in closer:
        heads += [(third, 0, told_.values), (third, 1, told_.upper_left), (third, 2, told_.lower_left),
                  (fourth, 2, told_.larger), (fourth, 0, told_.upper_even), (fourth, 1, told_.lower_even),
                  (fourth, 2, told_.upper_odd), (fourth, 3, told_.lower_odd)]
    for (q, k, seen, scale), head, looks in heads:
        each = []
        for row, query, shows in zip(looks.rows.tolist(), looks.queries.tolist(), looks.shows, strict=True):
            scores = [math.exp(q[row, head, query].dot(k[row, head, s]) * scale) if seen[row, 0, query, s] else 0.0
                      for s in range(k.shape[2])]
            on_it = sum(score for score, shown in zip(scores, shows, strict=True) if shown) / sum(scores)
            each.append(-math.log(on_it + 1e-6))
        wanted += sum(each) / max(len(each), 1)
    assert guidance.loss(given, lesson.told).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", ["tables", "charts"])
def test_what_is_fetched_in_the_last_layer_is_to_say_the_next_token(deep, kind):
    """One by one: the head's values where it should look, their mean, through its part of the last matrix, scaled as the
    last norm scales all that the token knows by then, to words."""
    lesson, ends = told(deep, kind=kind), []
    assert (len(lesson.told.larger.rows) > 0) == (kind == "charts")
    hook = deep.model.decoder.layers[-1].register_forward_hook(lambda _, inputs, outputs: ends.append(outputs[0]))
    with torch.no_grad(), guidance.listening(deep.model, lesson.told) as heard:
        deep.model.loss(lesson.batch)
        lost = guidance.fetched_loss(deep.model, heard, lesson.told, lesson.batch)
        wanted, matrix = 0.0, deep.model.decoder.layers[-1].attn.o_proj.weight
        for (given, head), looks in zip(heard[-5:], lesson.told[-5:], strict=True):
            each = []
            for row, query, shows in zip(looks.rows.tolist(), looks.queries.tolist(), looks.shows, strict=True):
                if not shows[query]:
                    fetched = given.values[row, head][shows].mean(0)
                    mine = matrix[:, head * len(fetched) : (head + 1) * len(fetched)]
                    loudness = ends[0][row, query].square().mean().sqrt()
                    said = mine @ fetched / loudness * deep.model.decoder.norm.weight
                    chances = (deep.model.decoder.head.weight @ said).softmax(0)
                    each.append(-chances[lesson.batch.labels[row, query + 1]].log().item())
            wanted += guidance.FETCHED * sum(each) / max(len(each), 1)
    hook.remove()
    assert lost.item() == pytest.approx(wanted, rel=1e-4)


def test_of_four_layers_and_of_pictures_without_letters_nothing_is_fetched_closer(trainer, deep):
    for learner, kind in ((trainer, "tables"), (deep, "grounding")):
        lesson = told(learner, kind=kind)
        with guidance.listening(learner.model, lesson.told) as heard:
            learner.model.loss(lesson.batch)
            assert guidance.fetched_loss(learner.model, heard, lesson.told, lesson.batch) == 0


@pytest.mark.parametrize("which", ["trainer", "deep"])
@pytest.mark.parametrize("fetched", [False, True])
def test_listening_changes_nothing_and_leaves_nothing_behind(request, which, fetched):
    trainer = request.getfixturevalue(which)
    lesson = told(trainer)
    with guidance.listening(trainer.model, lesson.told if fetched else None):
        heard = trainer.model.loss(lesson.batch).total
    assert_close(heard, trainer.model.loss(lesson.batch).total)
    for layer in trainer.model.decoder.layers:
        for part in (layer.attn, layer.attn.o_proj):
            assert not part._forward_hooks and not part._forward_pre_hooks


@pytest.mark.parametrize("part", [0.25, 1.0])
def test_guided_attention_falls_where_it_should_and_all_other_as_it_did(part):
    """Head 2 of four is told: token 3 of the first conversation to look at 0 and 2, token 4 of the second at 1."""
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    before = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    shows = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    given = guidance.Given(part)
    given.told.append((2, looking.Looks(torch.tensor([0, 1]), torch.tensor([3, 4]), shows)))
    with given:
        guided = attend(q, k, v, before)
    wanted = attend(q, k, v, before)
    assert_close(given.shares @ v, wanted)          # how it would have looked, which is what it learns from
    wanted[0, 2, 3] = wanted[0, 2, 3].lerp((v[0, 2, 0] + v[0, 2, 2]) / 2, part)
    wanted[1, 2, 4] = wanted[1, 2, 4].lerp(v[1, 2, 1], part)
    assert_close(guided, wanted)


@pytest.mark.parametrize(("which", "count"), [("trainer", 14), ("deep", 22)])
def test_every_head_that_is_told_is_guided(request, which, count):
    trainer = request.getfixturevalue(which)
    lesson = told(trainer)
    for part in (0.5, 0.0):
        with guidance.listening(trainer.model, lesson.told, part) as heard:
            assert len(heard) == count
            for (given, head), looks in zip(heard, lesson.told, strict=False):
                assert ((head, id(looks)) in [(head, id(looks)) for head, looks in given.told]) == (part > 0)
            layers = {id(given): given for given, _ in heard}.values()
            assert sum(len(given.told) for given in layers) == count * (part > 0)


@pytest.mark.parametrize(("layers", "first"), [(3, 0), (4, 1), (5, 1), (7, 3)])
def test_the_last_layers_are_told(layers, first):
    told = guidance.heads(with_layers(layers).model)
    assert sorted({layer for layer, _ in told}) == [*range(first, layers)] and len(told) == (22 if layers > 4 else 14)


def test_guidance_fades(monkeypatch):
    monkeypatch.setitem(curriculum.COURSES, "guided", (Stage(0.5, {}, (), guided=0.4), Stage(1.0, {}, ())))
    plan = loop.Plan(steps=100, course="guided")
    assert [plan.guidance_at(step) for step in (0, 10, 20, 40, 45, 50, 99)] == [1.0, 0.75, 0.5, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("latent", [True, False], ids=["latent", "multi-head"])
def test_what_was_heard_is_what_mixed_the_values(trainer, latent):
    config = trainer.model.config
    model = minivl2.build(dataclasses.replace(config, language=dataclasses.replace(config.language, use_mla=latent)))
    lesson, mixed = told(trainer), []
    attention = model.decoder.layers[-1].attn
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
    with guidance.listening(model) as heard:
        loss = model.loss(lesson.batch).total
    last, _ = heard[-1]
    real = lesson.batch.attention_mask.bool()
    assert_close(last.shares.sum(-1).transpose(1, 2)[real], torch.ones(int(real.sum()), last.shares.shape[1]))
    assert_close(loss, model.loss(lesson.batch).total)
    assert_close(mixed[0], mixed[1])


@pytest.mark.parametrize(("kind", "layers"), [("charts", 0), ("tables", 2)])
def test_where_to_look_is_learned(monkeypatch, kind, layers):
    """Also by layers that were added, so that there is one to look closer."""
    stage = Stage(1.0, {kind: 1}, ((2, 1),), looking=1.0)
    monkeypatch.setitem(curriculum.COURSES, "told", (stage,))
    trainer = make(steps=40, course="told")
    trainer = loop.Trainer(growth.deepened(trainer.model, decoder=layers), trainer.processor, trainer.plan)
    lesson = curriculum.lesson(trainer.processor, 0, 0, stage, 3)

    def lost():
        with torch.no_grad(), guidance.listening(trainer.model) as given:
            trainer.model.loss(lesson.batch)
            return guidance.loss(given, lesson.told).item()

    before = lost()
    for _ in range(40):
        trainer.train_step(lesson)
    assert lost() < 0.6 * before
