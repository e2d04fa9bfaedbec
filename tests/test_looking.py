"""Looking: where in the picture an answer is to be seen, and which tokens are told to look there."""

import dataclasses
import itertools
import random
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_training import make

from minivl2 import toyworld
from minivl2.places import LOCAL, places
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.things import COLOURS, DIAMETER, SHAPES, Scene, Thing, side_by_side
from minivl2.training import curriculum, looking, noticing
from minivl2.training.curriculum import Stage
from minivl2.training.tokenizer import spans

WRITTEN = ("text", "documents", "tables", "charts")
PICTURES = st.sampled_from([(kind, grid) for kind in WRITTEN for grid in dict.fromkeys(toyworld.GRIDS[kind])])


@pytest.fixture(scope="module")
def processor():
    return make().processor


def shown_by(processor, sample, box):
    return set(looking.View(processor, sample).showing([box])[0].nonzero()[0].tolist())


def places_of(processor, sample):
    """Which part of the picture each of its visual tokens shows, as test_places.py has tested it."""
    cfg = processor.config
    return places(sample.images[0].size, sample.grid, cfg.tile, cfg.patch_size, cfg.downsample_ratio)


# what the world says


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), PICTURES)
def test_what_is_read_is_seen_letter_by_letter(seed, which):
    sample = toyworld.draw(seed, *which)
    middles = {middle: letter for line in sample.written for middle, letter in zip(line.middles, line.text, strict=True)}
    for question in sample.questions:
        pieces = "".join(piece for piece, *_ in question.seen)
        assert pieces.replace(", ", "") == "".join(question.answer.replace(",", "").split())
        for piece, (x, y, right, bottom), _ in question.seen:
            assert (x, y) == (right, bottom)
            if len(piece) == 1 and question.ability not in ("chart", "chart values", "tallest", "larger"):
                assert middles[x, y] == piece


@pytest.mark.parametrize("seed", range(40))
def test_in_a_chart_is_looked_where_letter_and_value_are_known(seed):
    """A bar's value stands above, where a decoder that reads row by row has not come to the letter yet: so at the letter. In
    a pie's legend the value comes last: so at the value."""
    sample = toyworld.draw(seed, "charts", (2, 1))
    letter = {line.text: line for line in sample.written if line.text in sample.facts.labels}
    value = {line.left.text: line for line in sample.written if line.left}
    for question in sample.questions:
        if question.ability == "chart":
            label = sample.facts.labels[sample.facts.values.index(int(question.answer))]
            if sample.facts.style == "pie":
                assert value[label].text == question.answer
                assert [box[:2] for _, box, _ in question.seen] == list(value[label].middles)
            else:
                assert question.seen == ((question.answer, letter[label].middles[0] * 2, 0),)
                assert letter[label].above.text == question.answer and not value
        elif question.ability in ("tallest", "larger"):
            known = value if sample.facts.style == "pie" else letter
            assert question.seen == ((question.answer, known[question.answer].middles[-1] * 2, 0),)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), PICTURES, st.randoms())
def test_what_is_asked_for_again_is_shown_again(processor, seed, which, rng):
    """Whatever was asked for before, and in whatever order."""
    sample = toyworld.draw(seed, *which)
    boxes, view = [line.box for line in sample.written], looking.View(processor, sample)
    for _ in range(3):
        asked = rng.choices(boxes, k=rng.randint(1, 4))
        assert (view.showing(asked) == looking.View(processor, sample).look_for(asked)).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("kind", "ability"), [("documents", "label"), ("tables", "table largest")])
def test_a_name_is_looked_for_at_its_value(seed, kind, ability):
    """The name stands before the value, where a decoder does not know the value yet; the value is told to look left."""
    sample = toyworld.draw(seed, kind, (2, 2))
    end = -1 if kind == "tables" else 0         # how much a number is, is known where it ends
    values = {line.middles[end] * 2: line for line in sample.written if line.left}
    for question in sample.questions:
        if question.ability == ability:
            ((piece, box, _),) = question.seen
            assert piece == question.answer == values[box].left.text.removesuffix(":")
            column = [line for line in values.values() if line.above and line.above == values[box].above]
            assert all(int(line.text) <= int(values[box].text) for line in column)      # empty in a document


@pytest.mark.parametrize("seed", range(20))
def test_a_cell_belongs_to_its_row_and_its_column(seed):
    sample = toyworld.draw(seed, "tables", (2, 2))
    cells = [line for line in sample.written if line.left]
    assert len(cells) == len(sample.facts.rows) * len(sample.facts.columns)
    facts = sample.facts
    for line in cells:
        row, column = facts.rows.index(line.left.text), facts.columns.index(line.above.text)
        assert line.text == str(facts.cells[row][column])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(toyworld.GRIDS["scenes"]))
def test_what_a_thing_is_is_seen_at_the_thing(seed, grid):
    sample = toyworld.draw(seed, "scenes", grid)
    by_box = {thing.box: thing for thing in sample.facts.things}
    for question in sample.questions:
        if question.ability == "count":     # is known at the last of them
            named = toyworld.mentions(question.text, sample)
            counted = [*by_box] if not named else named[0][1]
            assert question.seen == ((question.answer, counted[-1] if counted else None, 0),)
            continue
        for piece, box, _ in question.seen:
            thing = by_box[box]
            assert set(piece.split()) <= {thing.size, thing.colour, thing.shape}
        if question.ability in ("colour", "shape", "size", "relation", "largest", "caption"):
            assert ", ".join(piece for piece, *_ in question.seen) == question.answer


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(toyworld.GRIDS["grounding"]))
def test_every_number_of_a_box_is_seen_at_the_thing_it_bounds(seed, grid):
    sample = toyworld.draw(seed, "grounding", grid)
    sides = (sample.facts.width, sample.facts.height)
    for question in sample.questions:
        numbers = [seen for seen in question.seen if seen.piece.isdigit()]
        assert [seen.piece for seen in numbers] == re.findall(r"\d+", question.answer)
        for piece, box, edge in numbers:
            assert abs(int(piece) / 999 - box[edge] / sides[edge % 2]) < 1 / 999
        assert [seen.box for seen in question.seen if seen.piece == "]]"] == [None] * question.answer.count("]]")
        things = question.answer.count("[") - question.answer.count("[[")
        nexts = [box for piece, box, _ in question.seen if piece == "], "]
        assert nexts == [numbers[4 * i].box for i in range(1, things)] * (question.ability == "boxes")
        names = [seen for seen in question.seen if seen.piece.split()[0].isalpha()]
        assert [seen.piece for seen in names] == (re.findall(r"\|ref\|>([^<]+)", question.answer)
                                                  if question.ability == "grounded caption" else [])
        thing_of = {thing.box: f"{thing.size} {thing.colour} {thing.shape}" for thing in sample.facts.things}
        assert all(thing_of[box] == piece for piece, box, _ in names)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_of_several_pictures_an_answer_is_seen_in_the_right_one(seed):
    """They stand side by side: their widths are added up."""
    sample = toyworld.draw(seed, "pairs")
    lefts = [sum(image.width for image in sample.images[:i]) for i in range(len(sample.images))]

    def thing_at(box):
        (which, left), = [(i, left) for i, (left, image) in enumerate(zip(lefts, sample.images, strict=True))
                          if left <= box[0] and box[2] <= left + image.width]
        alone = box[0] - left, box[1], box[2] - left, box[3]
        thing, = [thing for thing in sample.facts[which].things if thing.box == alone]
        return which, thing

    for question in sample.questions:
        named = [[thing_at(box) for box in boxes] for _, boxes in toyworld.mentions(question.text, sample)]
        (piece, box, _), *edges = question.seen
        which, thing = thing_at(box)
        if question.ability == "in context":
            assert (which, thing) == (0, sample.facts[0].things[sample.facts[0].marked]) and piece == thing.shape
            assert named == [[(which, thing)]]
            numbers = [int(number) for number in re.findall(r"\d+", question.answer)]
            assert [seen.piece for seen in edges] == [*map(str, numbers), "]]"] and edges.pop().box is None
            found, = {thing_at(seen.box) for seen in edges}
            assert found[0] == 1 and found[1].shape == thing.shape
            sides = (sample.images[1].width, sample.images[1].height) * 2
            for number, pixel, side in zip(numbers, found[1].box, sides, strict=True):
                assert abs(number / 999 - pixel / side) < 1 / 999
            assert [seen.edge for seen in edges] == [0, 1, 2, 3]
        else:
            assert piece == question.answer == toyworld.pairs.ORDINALS[which] and not edges
            if question.ability == "compare":
                assert thing == sample.facts[which].things[-1] and not named
            else:
                (fitting,) = named
                assert {at for at, _ in fitting} == {which} and (which, thing) == fitting[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(("scenes", "grounding")))
def test_a_question_about_things_names_all_that_fit(seed, kind):
    """Word by word: a noun, and what stands right before it. Maybe nothing fits."""
    sample = toyworld.draw(seed, kind)
    for question in sample.questions:
        wanted, end = [], 0
        size = colour = None
        for word in re.findall(r"[a-z]+|[^a-z]+", question.text):
            end += len(word)
            noun = re.sub("(?<=ss)es$|(?<!s)s$", "", word)
            if noun in (*SHAPES, "thing"):
                shape = None if noun == "thing" else noun
                fitting = [t.box for t in sample.facts.things
                           if size in (None, t.size) and colour in (None, t.colour) and shape in (None, t.shape)]
                if size or colour or shape:
                    wanted.append((end, fitting))
            if word != " ":
                size, colour = (word if word in DIAMETER else size if word in COLOURS else None,
                                word if word in COLOURS else None)
        assert toyworld.mentions(question.text, sample) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_a_question_about_a_table_names_its_row_and_its_column(seed):
    sample = toyworld.draw(seed, "tables", (2, 2))
    written = {line.text: [middle * 2 for middle in line.middles] for line in sample.written if line.text.isalpha()}
    for question in sample.questions:
        named = [(question.text.index(word) + len(word), letters) for word, letters in written.items()
                 if re.search(rf"\b{word}\b", question.text)]
        assert toyworld.mentions(question.text, sample) == sorted(named)
        assert len(named) == {"table": 2, "table row": 1, "table largest": 1}[question.ability]


def test_names_by_hand():
    big, small = Thing("big", "red", "circle", (0, 0, 9, 9)), Thing("small", "red", "cross", (20, 0, 25, 5))
    sample = toyworld.Sample("scenes", (), (), Scene(40, 40, (big, small)), (1, 1))
    both, word = [big.box, small.box], "is the circle"
    assert toyworld.mentions("how many red things are there?", sample) == [(len("how many red things"), both)]
    assert toyworld.mentions("is the circle big or small?", sample) == [(len(word), [big.box])]
    assert toyworld.mentions("where are all crosses?", sample) == [(len("where are all crosses"), [small.box])]
    assert toyworld.mentions("how many things are there, or blue crosses?", sample) == [(42, [])]
    bars = toyworld.Sample("charts", (), (), None, (1, 1), (Line("A 42", (0, 0, 9, 9), ((1, 5), (2, 5), (3, 5), (4, 5))),))
    assert toyworld.mentions("A or B?", bars) == [(1, [(1, 5, 1, 5)])]
    assert toyworld.mentions("what says 42?", bars) == [(12, [(3, 5, 3, 5), (4, 5, 4, 5)])]


# from pixels to visual tokens


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), which=PICTURES)
def test_every_letter_is_looked_for_at_the_one_tile_token_that_shows_it(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    line = places_of(processor, sample)
    for x, y in (middle for line in sample.written for middle in line.middles):
        token, = shown_by(processor, sample, (x, y, x, y))
        left, top, right, lower = line[token].in_picture
        assert left <= x < right and top <= y < lower and line[token].view == LOCAL


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), grid=st.sampled_from(toyworld.GRIDS["scenes"]))
def test_a_thing_is_looked_for_where_it_covers_much_or_has_its_middle(processor, seed, grid):
    sample = toyworld.draw(seed, "scenes", grid)
    for thing in sample.facts.things:
        wanted = set()
        for token, place in enumerate(places_of(processor, sample)):
            if place.in_picture:
                left, top, right, lower = place.in_picture
                across = max(min(right, thing.box[2]) - max(left, thing.box[0]), 0)
                down = max(min(lower, thing.box[3]) - max(top, thing.box[1]), 0)
                x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
                part = across * down / ((right - left) * (lower - top))
                assume(abs(part - looking.MUCH) > 1e-5)             # or rounding decides
                if part > looking.MUCH or (left <= x < right and top <= y < lower):
                    wanted.add(token)
        assert shown_by(processor, sample, thing.box) == wanted


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_pictures_side_by_side_are_seen_as_each_alone(processor, seed):
    sample = toyworld.draw(seed, "pairs")
    assert processor(toyworld.messages(sample.questions[:1], len(sample.images)), sample.images).image_mask.sum() == len(
        looking.View(processor, sample).local)
    view, left = looking.View(processor, sample), 0
    n = len(view.local) // len(sample.images)           # all have the same grid
    for i, (image, scene) in enumerate(zip(sample.images, sample.facts, strict=True)):
        alone = looking.View(processor, dataclasses.replace(sample, images=(image,)))
        for x1, y1, x2, y2 in (thing.box for thing in scene.things):
            wanted = alone.showing([(x1, y1, x2, y2)])[0].nonzero()[0] + i * n
            assert view.showing([(x1 + left, y1, x2 + left, y2)])[0].nonzero()[0].tolist() == wanted.tolist()
        left += image.width


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=PICTURES | st.sampled_from([("grounding", (2, 1)), ("scenes", (2, 1))]))
def test_every_token_of_an_answer_looks_at_its_own_piece(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    view = looking.View(processor, sample)
    for question in sample.questions:
        *shown, (_, end, _) = looking.where(processor, view, question)
        assert end is None if question.seen else not end.any()
        wanted, at = [set() for _ in question.answer], 0            # of each character
        edges = [0 for _ in question.answer]
        for piece, box, edge in question.seen:
            at = question.answer.index(piece, at)
            for i in range(at, at + len(piece)):
                wanted[i], edges[i] = shown_by(processor, sample, box) if box else None, edge
                if piece.isdigit() and "<|ref|>" in question.answer:     # where in the picture: for the global view to say
                    wanted[i] -= {*view.local.nonzero()[0]}
            for size in re.finditer("big|small", piece):                # how large beside it: the same
                for i in range(at + size.start(), at + size.end()):
                    wanted[i] -= {*view.local.nonzero()[0]}
            at += len(piece)
        for (_, (first, last)), (edge, tokens, _) in zip(spans(processor.tokenizer, question.answer), shown, strict=True):
            if tokens is None:
                assert set(wanted[first:last]) == {None}            # "]]", or that there are 0
            else:
                assert set(tokens.nonzero()[0].tolist()) == set().union(*wanted[first:last])
            assert edge == max(edges[first:last], default=0)


def row_of(processor, sample, middle):
    """In which row of patches of its visual token a letter stands, by its place among all patches."""
    cfg = processor.config
    x, y = middle
    patch, = (place for place in places(sample.images[0].size, sample.grid, cfg.tile, cfg.patch_size, 1)
              if place.view == LOCAL and place.in_picture
              and place.in_picture[0] <= x < place.in_picture[2] and place.in_picture[1] <= y < place.in_picture[3])
    return patch.row % (cfg.tile // cfg.patch_size) % 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), which=PICTURES)
def test_closer_a_character_is_looked_for_in_its_row_every_other_one_by_the_same_head(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    view = looking.View(processor, sample)
    for question in sample.questions:
        *shown, (_, _, ends) = looking.where(processor, view, question)
        assert len(ends) == 4 * bool(question.seen) and not any(row.any() for row in ends)
        wanted, at = [[set(), set(), set(), set()] for _ in question.answer], 0          # of each character
        for piece, box, _ in question.seen:
            at = question.answer.index(piece, at)
            for i in range(at, at + len(piece)):
                word = re.search(r"[A-Za-z0-9]*\Z", question.answer[:i])[0]
                wanted[i][len(word) % 2 * 2 + row_of(processor, sample, box[:2])] = shown_by(processor, sample, box)
            at += len(piece)
        for (_, (first, last)), (_, tokens, rows) in zip(spans(processor.tokenizer, question.answer), shown, strict=True):
            both = [set().union(*row) for row in zip(*wanted[first:last], strict=True)]
            assert [set(row.nonzero()[0].tolist()) for row in rows] == both or not (rows or any(both))
            assert set(tokens.nonzero()[0].tolist()) == set.union(*both)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), which=PICTURES.filter(lambda which: which[0] in ("tables", "documents")))
def test_each_row_of_a_token_looks_left_at_what_stands_beside_it_or_at_itself(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    view, beside = looking.View(processor, sample), [line for line in sample.written if line.left]
    shown = {line: set().union(*(shown_by(processor, sample, middle * 2) for middle in line.middles))
             for line in sample.written}
    found = looking.rows_apart(view, dict(zip(sample.written, view.letters(sample.written), strict=True)),
                               [(line, line.left) for line in beside])
    for row, looks in enumerate(found):
        mine = [line for line in beside if row_of(processor, sample, line.middles[0]) == row]
        wanted = [(token, sorted(seen for seen in shown[line.left] if seen <= token))
                  for line in mine for token in shown[line]]
        idle = set().union(*(shown[line] for line in beside)) - {token for token, _ in wanted}
        assert sorted((token, tokens.nonzero()[0].tolist()) for token, tokens in looks) == sorted(
            wanted + [(token, [token]) for token in idle])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(("scenes", "grounding", "pairs")))
def test_a_thing_looks_at_the_one_before_it_of_all_of_its_colour_and_of_its_shape(processor, seed, kind):
    """Of several pictures, in each alone."""
    sample = toyworld.draw(seed, kind)
    view = looking.View(processor, sample)
    for scene in side_by_side(sample.scenes):
        shown = [shown_by(processor, sample, thing.box) for thing in scene.things]
        chains, known = looking.chained(view, scene), {token for token, *_ in noticing.orders(view, scene)}
        for name, chain in zip((None, "colour", "shape"), chains, strict=True):
            assert {token for token, _ in chain} == known
            for token, tokens in chain:
                i, = [i for i, mine in enumerate(shown) if token in mine]
                alike = [j for j in range(i) if not name or getattr(scene.things[j], name) == getattr(scene.things[i], name)]
                wanted = {other for other in shown[alike[-1]] if other < token} if alike else None
                assert (wanted if tokens is None else {*tokens.nonzero()[0].tolist()}) == wanted and wanted != set()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(("scenes", "grounding", "pairs")))
def test_who_goes_on_to_another_thing_is_told_so_once_more(processor, seed, kind):
    """What the world says of each piece of an answer: as often as that is another thing. (Two things can share a token.)"""
    sample = toyworld.draw(seed, kind)
    for question in sample.questions:
        batch = processor(toyworld.messages([question], len(sample.images)), sample.images, training=True)
        told = looking.looks(processor, [sample], [[question]], batch)
        things = [box for box, _ in itertools.groupby(box for _, box, _ in question.seen if box)]
        shown = [shown_by(processor, sample, box) for box in things]
        apart = [b for a, b in itertools.pairwise(shown) if not a & b]
        assume(len(apart) == len(shown[1:]))
        looks, visual = told.onward, batch.image_mask[0].nonzero().flatten()
        assert len(looks.rows) == len(apart)
        answers = dict(zip(told.answers.queries.tolist(), told.answers.shows, strict=True))
        line = sorted(query for told_ in told[4:8] for query in told_.queries.tolist())
        after = [query for at in looks.queries.tolist() for query in line[line.index(at) + 1 :][:2]
                 if query in answers]
        assert sorted(told.starting.queries.tolist()) == sorted(after)
        for query, tokens in zip(told.starting.queries.tolist(), told.starting.shows, strict=True):
            assert torch.equal(tokens, answers[query])
        for query, tokens, thing in zip(looks.queries.tolist(), looks.shows, apart, strict=True):
            assert torch.equal(tokens, answers[query])
            assert {*tokens.nonzero().flatten().tolist()} <= {*visual[[*thing]].tolist()}       # sizes, in the global view


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), which=PICTURES)
def test_what_belongs_to_something_looks_at_what_of_it_came_before(processor, seed, which):
    sample = toyworld.draw(seed, *which)
    shown = [set().union(*(shown_by(processor, sample, middle * 2) for middle in line.middles)) for line in sample.written]
    view = looking.View(processor, sample)
    for side in ("left", "above"):
        pairs = [(line, other) for line in sample.written if (other := getattr(line, side))]
        wanted = [(token, sorted(seen for seen in shown[sample.written.index(other)] if seen <= token))
                  for line, other in pairs for token in shown[sample.written.index(line)]]
        found = looking.tied(dict(zip(sample.written, view.letters(sample.written), strict=True)), pairs)
        assert sorted(wanted) == sorted((token, tokens.nonzero()[0].tolist()) for token, tokens in found)


@pytest.mark.parametrize("kind", toyworld.KINDS)
def test_looks_ask_the_token_before_and_show_visual_tokens_or_themselves(processor, kind):
    stage = Stage(1.0, {kind: 1}, tuple(toyworld.GRIDS[kind]), looking=1.0)
    lesson = curriculum.lesson(processor, 0, 0, stage, 4)
    batch, (names, said, left, above, *answers), closer = lesson.batch, lesson.told[:8], lesson.told[-4:]
    chains = lesson.told.before, lesson.told.before_of_colour, lesson.told.before_of_shape
    for looks in lesson.told:
        assert (looks.shows.sum(1) > 0).all() and (batch.attention_mask.bool()[looks.rows] | ~looks.shows).all()
        elsewhere = looks.shows & ~batch.image_mask[looks.rows]
        if looks is lesson.told.larger:
            continue
        absent = elsewhere.any(1)                                   # what a name names is not there, or nothing more is
        assert (looks.shows[absent].sum(1) == 1).all()
        if any(looks is one for one in chains):                     # there is none before it: the first token of all
            assert torch.equal(looks.shows[absent].int().argmax(1), batch.attention_mask[looks.rows[absent]].int().argmax(1))
        else:
            assert any(looks is one for one in (names, answers[0], *closer)) or not absent.any()
            assert looks.shows[absent, looks.queries[absent]].all()
        last = (looks.shows * torch.arange(looks.shows.shape[1])).amax(1) if len(looks.rows) else looks.queries
        assert (last <= looks.queries).all()                        # nobody is told to look at what is still to come
    assert all(batch.learned[looks.rows, looks.queries].all() for looks in (*answers, *closer))
    upper, lower, *odd = closer
    assert torch.equal(upper.queries, lower.queries) and (len(upper.rows) > 0) == (kind in WRITTEN)
    for looks in odd:           # by these the larger of two is found in the question
        answers_larger = set(zip(lesson.told.larger.rows.tolist(), lesson.told.larger.queries.tolist(), strict=True))
        mine, all_ = ({*zip(each.rows.tolist(), each.queries.tolist(), strict=True)} for each in (looks, upper))
        assert mine <= all_ and answers_larger <= all_ - mine and len(all_ - mine) == 2 * len(answers_larger)
    queries, shows = (torch.cat([getattr(looks, name) for looks in answers]) for name in ("queries", "shows"))
    found = ~shows[torch.arange(len(queries)), queries]
    assert torch.equal(said.queries, queries[found] + 1) and torch.equal(said.shows, shows[found])
    assert all(batch.image_mask[ties.rows, ties.queries].all()
               for ties in (left, above, lesson.told.upper_left, lesson.told.lower_left, *chains))
    assert {len(chain.rows) for chain in chains} == {len(chains[0].rows)}
    assert (len(chains[0].rows) > 0) == (kind not in WRITTEN)
    pieces, *edges = (len(looks.rows) > 0 for looks in answers)
    assert pieces and edges == [kind in ("grounding", "pairs")] * 3
    assert not batch.image_mask[names.rows, names.queries].any()
    assert not batch.learned[names.rows, names.queries - 1].any()      # names stand in questions
    assert (len(names.rows) > 0) == (kind != "text")
    again, found = lesson.told.again, found & (kind not in WRITTEN)
    assert torch.equal(again.queries.sort().values, queries[found].add(1).sort().values)
    assert (len(left.rows) > 0) == (kind in ("documents", "tables", "charts"))
    assert (len(above.rows) > 0) == (kind in ("charts", "tables"))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(list(toyworld.KINDS)))
def test_the_last_token_of_a_name_looks_at_what_it_names_or_at_itself(processor, seed, kind):
    stage = Stage(1.0, {kind: 1}, tuple(toyworld.GRIDS[kind]), looking=1.0)
    batch, names = (lesson := curriculum.lesson(processor, seed, 0, stage, 2)).batch, lesson.told.names
    samples = curriculum.pictures(seed, 0, stage, 2)
    for row, sample in enumerate(samples):
        asked = curriculum.interview(processor, sample, random.Random(f"questions {seed} 0 {row}"))
        wanted = [(question.text[:after], boxes)
                  for question in asked for after, boxes in toyworld.mentions(question.text, sample)]
        mine = sorted((query, shows) for at, query, shows in
                      zip(names.rows.tolist(), names.queries.tolist(), names.shows, strict=True) if at == row)
        assert len(mine) == len(wanted)
        visual = batch.image_mask[row].nonzero().flatten().tolist()
        for (query, shows), (text, boxes) in zip(mine, wanted, strict=True):
            read = processor.tokenizer.decode(batch.input_ids[row, : query + 1].tolist(), skip_special_tokens=False)
            assert read.endswith(text)
            seen = set().union(*(shown_by(processor, sample, box) for box in boxes))
            assert shows.nonzero().flatten().tolist() == (sorted(visual[token] for token in seen) or [query])


@pytest.mark.parametrize("seed", range(10))
def test_what_is_compared_is_fetched_first_and_then_the_larger_is_looked_at(processor, seed):
    """The last token of each letter, where the letter and its value are known; and then the colon before the answer, at the
    letter in the question which is the answer."""
    stage = Stage(1.0, {"charts": 1}, tuple(toyworld.GRIDS["charts"]), looking=1.0)
    lesson, samples = curriculum.lesson(processor, seed, 0, stage, 4), curriculum.pictures(seed, 0, stage, 4)
    values, larger, ids = lesson.told.values, lesson.told.larger, lesson.batch.input_ids

    def read(row, until):
        return processor.tokenizer.decode(ids[row, : until + 1].tolist(), skip_special_tokens=False)

    count = 0
    for row, sample in enumerate(samples):
        asked = [q for q in curriculum.interview(processor, sample, random.Random(f"questions {seed} 0 {row}"))
                 if q.ability == "larger"]
        visual = lesson.batch.image_mask[row].nonzero().flatten().tolist()
        known = {line.left.text if line.left else line.text: line.middles
                 for line in sample.written if line.left or line.above}
        mine = {read(row, query): set(shows.nonzero().flatten().tolist()) for at, query, shows in zip(*values, strict=True)
                if at == row}
        winners = {read(row, query): shows.nonzero().flatten().tolist() for at, query, shows in zip(*larger, strict=True)
                   if at == row}
        assert len(winners) == len(asked) and len(mine) == 2 * len(asked)
        count += len(asked)
        for question in asked:
            (before, (place,)), = ((before, shows) for before, shows in winners.items()
                                   if before.endswith(f"{question.text}\n\n<|Assistant|>:"))
            start = before[: -len(f"{question.text}\n\n<|Assistant|>:")]
            assert read(row, place) == start + question.text[: question.text.index(question.answer) + 1]
            for letter in re.findall(r"[A-Z]", question.text):
                text = start + question.text[: question.text.index(letter) + 1]
                wanted = set().union(*(shown_by(processor, sample, middle * 2) for middle in known[letter]))
                assert mine[text] == {visual[token] for token in wanted}
    assert count == len(larger.rows)


def test_a_stage_that_tells_nothing_draws_the_same_lessons(processor):
    stage = Stage(1.0, {"charts": 1}, ((2, 1),))
    plain, told = (curriculum.lesson(processor, 0, 0, s, 3) for s in (stage, dataclasses.replace(stage, looking=0.3)))
    assert plain.told is None and torch.equal(plain.batch.input_ids, told.batch.input_ids)
