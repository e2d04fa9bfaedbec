"""Noticing: what visual tokens are to know, which of them can know it, and how they are asked."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_looking import places_of, row_of, shown_by
from test_training import assert_same, make, weights

from minivl2 import toyworld
from minivl2.places import GLOBAL, LOCAL
from minivl2.toyworld.things import DIAMETER
from minivl2.training import curriculum, growth, loop, noticing
from minivl2.training.curriculum import Stage
from minivl2.training.shown import CHARACTERS

SCENES = st.sampled_from([(kind, grid) for kind in ("scenes", "grounding") for grid in dict.fromkeys(toyworld.GRIDS[kind])])
PAIRS = st.sampled_from([("pairs", grid) for grid in dict.fromkeys(toyworld.GRIDS["pairs"])])
WRITTEN = st.sampled_from([(kind, grid) for kind in ("text", "documents", "tables", "charts")
                           for grid in dict.fromkeys(toyworld.GRIDS[kind])])
NUMBERS = st.sampled_from([(kind, grid) for kind in ("tables", "charts") for grid in dict.fromkeys(toyworld.GRIDS[kind])])


@pytest.fixture(scope="module")
def processor():
    return make().processor


@pytest.fixture(scope="module")
def trainer():
    """Of a toy that has layers enough, in a course that asks."""
    small = make()
    plan = loop.Plan(10, batch=4, dtype="float32", course="again")
    model = growth.deepened(small.model, 0, 2)
    with torch.no_grad():
        for layer in model.decoder.layers:                  # new ones add nothing, and what leaves them would be the same
            layer.attn.o_proj.weight.normal_(0, 0.1)
    return loop.Trainer(model, small.processor, plan)


def known(processor, sample):
    """What is to be noticed of a sample, and the places of its visual tokens in the conversation."""
    batch = processor(toyworld.messages(sample.questions[:1], len(sample.images)), sample.images, training=True)
    return noticing.noticed(processor, [sample], batch), batch.image_mask[0].nonzero().flatten().tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=SCENES)
def test_a_token_that_shows_one_thing_and_comes_after_those_before_it_knows_its_place(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    found, visual = known(processor, sample)
    places, things = places_of(processor, sample), sample.facts.things

    def first(thing):           # the token of the global view in which its middle lies
        x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
        return next(token for token, place in enumerate(places) if place.view == GLOBAL and place.in_picture
                    and place.in_picture[0] <= x < place.in_picture[2] and place.in_picture[1] <= y < place.in_picture[3])

    wanted, shown = {}, [shown_by(processor, sample, thing.box) for thing in things]
    for i, thing in enumerate(things):
        colours, shapes = Counter(t.colour for t in things[:i]), Counter(t.shape for t in things[:i])
        for token in shown[i]:
            alone = sum(token in tokens for tokens in shown) == 1
            if alone and (places[token].view == LOCAL or all(first(other) <= token for other in things[:i])):
                wanted[visual[token]] = [i, colours[thing.colour], shapes[thing.shape]]
    assert dict(zip(found.things[1].tolist(), found.order.tolist(), strict=True)) == wanted
    big = {visual[token]: things[i].size == "big" for i, tokens in enumerate(shown) for token in tokens
           if sum(token in others for others in shown) == 1}
    assert [*DIAMETER] == ["small", "big"]
    assert found.size.tolist() == [big[token] for token in found.things[1].tolist()]
    assert len(found.row) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=SCENES)
def test_a_token_of_the_global_view_that_shows_one_thing_knows_its_edges(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    found, visual = known(processor, sample)
    places, shown = places_of(processor, sample), [shown_by(processor, sample, thing.box) for thing in sample.facts.things]
    wanted = {}
    for token, place in enumerate(places):
        boxes = [thing.box for thing, tokens in zip(sample.facts.things, shown, strict=True) if token in tokens]
        if place.view == GLOBAL and len(boxes) == 1:
            sides = (sample.facts.width, sample.facts.height) * 2
            wanted[visual[token]] = [round(edge / side * 999) for edge, side in zip(boxes[0], sides, strict=True)]
    assert dict(zip(found.bounded[1].tolist(), found.edges.tolist(), strict=True)) == wanted


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=PAIRS)
def test_of_several_pictures_each_is_noticed_as_if_it_were_alone(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    found, visual = known(processor, sample)
    n, wanted = len(visual) // len(sample.images), []
    for i, (image, scene) in enumerate(zip(sample.images, sample.facts, strict=True)):
        alone, tokens = known(processor, replace(sample, images=(image,), facts=scene))
        at = {token: visual[n * i + k] for k, token in enumerate(tokens)}
        wanted.append(([at[token] for token in alone.things[1].tolist()], alone.order.tolist(),
                       [at[token] for token in alone.bounded[1].tolist()], alone.edges.tolist()))
    tokens, orders, bounded, edges = (sum(each, []) for each in zip(*wanted, strict=True))
    assert found.things[1].tolist() == tokens and found.order.tolist() == orders
    assert found.bounded[1].tolist() == bounded and found.edges.tolist() == edges


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=WRITTEN)
def test_a_row_of_letters_knows_which_they_are_and_which_of_its_line_is_the_first_and_the_last(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    found, visual = known(processor, sample)
    there = {}
    for line in sample.written:
        for i, middle in enumerate(line.middles):
            where = visual[shown_by(processor, sample, middle * 2).pop()], row_of(processor, sample, middle)
            there.setdefault(where, []).append((sample.written.index(line), i))
    wanted = {where: (letters[0][1], letters[-1][1] + 1 == len(sample.written[letters[0][0]].text))
              for where, letters in there.items() if len({line for line, _ in letters}) == 1}
    where = zip(found.written[1].tolist(), found.written_row.tolist(), strict=True)
    assert dict(zip(where, zip(found.letter.tolist(), found.last.tolist(), strict=True), strict=True)) == wanted
    assert len(found.letter) == len(wanted)
    spelled = dict(zip(zip(found.written[1].tolist(), found.written_row.tolist(), strict=True), found.spelled, strict=True))
    for where in wanted:
        text = "".join(sample.written[line].text[i] for line, i in there[where]).replace(" ", "")
        assert "".join((*CHARACTERS, "")[i] for i in spelled[where].tolist()) == text[: noticing.SPELLED]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=NUMBERS)
def test_the_token_in_which_a_number_ends_knows_how_much_it_is_and_whether_it_is_an_extreme_so_far(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    found, visual = known(processor, sample)
    numbers = [line for line in sample.written if line.text.isdigit()]
    ends = {line: visual[shown_by(processor, sample, line.middles[-1] * 2).pop()] for line in numbers}
    wanted = []
    for line in numbers:
        column = [int(other.text) for other in numbers
                  if (sample.kind == "charts" or other.above.text == line.above.text) and ends[other] <= ends[line]]
        wanted.append([ends[line], row_of(processor, sample, line.middles[-1]),
                       *(float(int(line.text) >= amount) for amount in noticing.AMOUNTS),
                       float(max(column) == int(line.text)), float(min(column) == int(line.text))])
    got = [[*about, *bits] for *about, bits in
           zip(found.numbers[1].tolist(), found.row.tolist(), found.known.tolist(), strict=True)]
    assert sorted(got) == sorted(wanted)
    assert len(found.order) == 0


@pytest.mark.parametrize("kind", ["tables", "charts"])
def test_the_largest_of_all_is_the_last_that_is_the_largest_so_far(processor, kind):
    """And the smallest likewise: what a decoder can rely on. Of several numbers that end in one token, each knows all."""
    for seed in range(60):
        sample, at = toyworld.draw(seed, kind, (2, 2)), 0
        found, _ = known(processor, sample)
        for lines in noticing.groups(sample):
            places = found.numbers[1][at : at + len(lines)].tolist()
            for which, extreme in enumerate((max, min), len(noticing.AMOUNTS)):
                so_far = [(place, int(line.text)) for place, line, bits in
                          zip(places, lines, found.known[at : at + len(lines)], strict=True) if bits[which]]
                latest = max(place for place, _ in so_far)
                assert {value for place, value in so_far if place == latest} == {extreme(int(line.text) for line in lines)}
            at += len(lines)
        assert at == len(found.known) > 1


def test_the_loss_is_that_of_each_number_and_each_order_by_hand(trainer):
    stage = Stage(1.0, {"tables": 1, "grounding": 1}, ((2, 1),), noticing=1.0)
    lesson = curriculum.lesson(trainer.processor, 0, 0, stage, 6)
    heads, left = trainer.asking.working, []
    hooks = [trainer.model.decoder.layers[i].register_forward_hook(lambda _, __, out: left.append(out[0]))
             for i in range(1, 4)]                                                  # of five
    with torch.no_grad(), noticing.overheard(trainer.model) as heard:
        trainer.model.loss(lesson.batch)
        got = noticing.loss(heads, heard, lesson.noticed).item()
    for hook in hooks:
        hook.remove()

    def said(head, vector):
        vector = vector / vector.square().mean().sqrt()
        return (head.weight @ vector + head.bias).double().tolist()

    known, orders, sizes, edges, letters, spelling, amounts, extremes = lesson.noticed, [], [], [], [], [], [], []
    for row, token, order, size in zip(*known.things, known.order.tolist(), known.size.tolist(), strict=True):
        logits = said(heads.head_size, left[0][row, token])
        sizes.append(math.log(sum(map(math.exp, logits))) - logits[size])
        logits = said(heads.head_order, left[0][row, token])
        orders.append(sum(math.log(sum(math.exp(x) for x in logits[6 * i : 6 * i + 6])) - logits[6 * i + place]
                          for i, place in enumerate(order)))
    for row, token, told in zip(*known.bounded, known.edges.tolist(), strict=True):
        numbers = said(heads.head_edges, left[1][row, token])
        off = sum(abs(number - edge / 1000) for number, edge in zip(numbers, told, strict=False))
        loss = noticing.DISTANCE * off
        for place in range(2):
            for i, edge in enumerate(told):
                ten = numbers[4 + 40 * place + i : 44 + 40 * place + i : 4]
                loss += noticing.EDGE * (math.log(sum(map(math.exp, ten))) - ten[int(f"{edge:03}"[place])])
        edges.append(loss)
    for row, token, which, letter, last in zip(*known.written, known.written_row.tolist(), known.letter.tolist(),
                                               known.last.tolist(), strict=True):
        *logits, end = said(heads.head_letters, left[1][row, token])[which * 9 : which * 9 + 9]
        letters.append(math.log(sum(map(math.exp, logits))) - logits[min(letter, 7)]
                       + math.log(1 + math.exp(-end if last else end)))
    for row, token, which, text in zip(*known.written, known.written_row.tolist(), known.spelled.tolist(), strict=True):
        logits, kinds = said(heads.head_spelling, left[2][row, token]), len(CHARACTERS) + 1
        each = [logits[kinds * (3 * which + i) : kinds * (3 * which + i + 1)] for i in range(3)]
        spelling.append(sum(math.log(sum(map(math.exp, one))) - one[character]
                            for one, character in zip(each, text, strict=True)))
    for row, token, which, bits in zip(*known.numbers, known.row.tolist(), known.known.tolist(), strict=True):
        logits = said(heads.head_numbers, left[1][row, token])[which * noticing.NUMBERS :]
        each = [math.log(1 + math.exp(-x if bit else x)) for x, bit in zip(logits, bits, strict=False)]
        amounts.append(noticing.AMOUNT * sum(each[: len(noticing.AMOUNTS)]))
        extremes.append(sum(each[len(noticing.AMOUNTS) :]))
    assert min(map(len, (orders, edges, letters, amounts))) > 5
    told = sum(sum(each) / len(each) for each in (orders, sizes, edges, letters, spelling, amounts, extremes))
    assert got == pytest.approx(told, rel=1e-4)
    assert not any(layer._forward_hooks for layer in trainer.model.decoder.layers)


def test_heads_learn_with_the_model_and_go_on_learning_after_a_kill(tmp_path):
    """Resumed, to the same weights and the same heads; and the checkpoint's tensors are the model's alone."""
    def begin():
        small = make()
        torch.manual_seed(1)
        return loop.Trainer(growth.deepened(small.model, 0, 2), small.processor,
                            loop.Plan(6, batch=2, dtype="float32", course="again"))

    def steps(trainer, until):
        while trainer.step < until:
            trainer.train_step(trainer.plan.lesson_at(trainer.step, trainer.processor))

    whole, killed = begin(), begin()
    before = {name: t.clone() for name, t in whole.asking.module.state_dict().items()}
    steps(whole, 4)
    steps(killed, 2)
    loop.write_plan(killed.plan, tmp_path / "run")
    killed.save(tmp_path / "run")
    resumed = loop.Trainer.resume(tmp_path / "run")
    steps(resumed, 4)
    assert_same(weights(whole), weights(resumed))
    heads = whole.asking.module.state_dict()
    assert_same(heads, resumed.asking.module.state_dict())
    assert all(not torch.equal(heads[name], old) for name, old in before.items())
    assert not any("head_order" in name or "asking" in name for name in resumed.model.state_dict())


def test_a_course_that_does_not_ask_has_no_heads_and_draws_the_same_lessons(processor):
    small = make()
    assert loop.Trainer(small.model, small.processor, loop.Plan(1, course="things")).asking is None
    stage = Stage(1.0, {"charts": 1}, ((2, 1),))
    plain = curriculum.lesson(processor, 0, 0, stage, 3)
    asked = curriculum.lesson(processor, 0, 0, Stage(1.0, {"charts": 1}, ((2, 1),), noticing=0.1), 3)
    assert plain.noticed is None and torch.equal(plain.batch.input_ids, asked.batch.input_ids)
