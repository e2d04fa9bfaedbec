"""Answering: greedy and drawn, one by one and in batches, up to the end and no further."""

from types import SimpleNamespace

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minivl2.batch import Batch, common_start, pad_left
from minivl2.cache import Cache
from minivl2.generation import answer_each, generate, one_by_one, penalise, sample, stream, write
from minivl2.model import DeepSeekVL2

END = 1
KINDS = {"multi-head": small.MULTI_HEAD, "latent": {}, "sigmoid": small.SIGMOID}
each_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(kind="latent", seed=0, end=END, **changes):
    return small.randomised(DeepSeekVL2(small.config(**KINDS[kind], eos_token_id=end, **changes)), seed)


def prompts(processor):
    """With one image, with two, with none."""
    return [processor(small.ask("<image> what is it?"), [small.picture(80, 40)]),
            processor(small.ask("<image><image>"), [small.picture(42, 42, seed=1), small.picture(30, 120, seed=2)]),
            processor(small.ask("how many?"))]


def text_batch(*rows):
    return pad_left([
        Batch(ids := torch.tensor([row]), torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool),
              torch.empty(0, 3, small.TILE, small.TILE), torch.empty(0, 2, dtype=torch.long)) for row in rows], pad_id=2)


def from_scratch(model, batch, steps):
    """Greedy answers of a batch of one without a cache: the whole text is read again for every token."""
    x, answer = model.embed(batch), []
    for _ in range(steps):
        real = torch.ones(x.shape[:2], dtype=torch.bool)
        answer.append(int(model.decoder.head(model.decoder(x, real)[0][0, -1]).argmax()))
        if answer[-1] == model.config.language.eos_token_id:
            break
        x = torch.cat((x, model.decoder.embed.weight[answer[-1]].view(1, 1, -1)), dim=1)
    return answer


# ------------------------------------------------------------------------------------------ greedy


@torch.no_grad()
@each_kind
def test_a_greedy_answer_is_the_likeliest_token_again_and_again(processor, kind):
    model = model_of(kind, end=-1)
    for batch in prompts(processor):
        assert generate(model, batch, 8)[0].tolist() == from_scratch(model, batch, 8)


@torch.no_grad()
@each_kind
@settings(max_examples=6)
@given(seed=st.integers(0, 99), chunk=st.one_of(st.none(), st.integers(1, 60)))
def test_a_batch_is_answered_as_its_members_are_alone_however_it_is_read(processor, kind, seed, chunk):
    model, alone = model_of(kind, seed, end=-1), prompts(processor)
    together = generate(model, processor.batch(alone), 6, prefill_chunk=chunk)
    for row, batch in zip(together, alone, strict=True):
        assert row.tolist() == from_scratch(model, batch, 6)


# ------------------------------------------------------------------------------------------ several questions, one picture

QUESTIONS = ["what is it?", "what", "how many red things are there, and where?"]


@torch.no_grad()
@each_kind
@settings(max_examples=6)
@given(seed=st.integers(0, 99), chunk=st.one_of(st.none(), st.integers(1, 60)), images=st.integers(0, 2))
def test_questions_asked_together_get_the_answers_they_get_alone(processor, kind, seed, chunk, images):
    model = model_of(kind, seed, end=-1)
    pictures = [small.picture(80, 40), small.picture(42, 42, seed=1)][:images]
    together = answer_each(model, processor, QUESTIONS, pictures, 6, prefill_chunk=chunk)
    for question, answer in zip(QUESTIONS, together, strict=True):
        batch = processor(small.ask("<image>\n" * images + question), pictures)
        assert answer == processor.decode(from_scratch(model, batch, 6))


@torch.no_grad()
def test_several_questions_share_one_look_at_the_picture_and_one_reading(processor):
    model, looked, read = model_of(end=-1), [], []
    model.vision.register_forward_hook(lambda _, inputs, __: looked.append(len(inputs[0])))
    model.decoder.register_forward_hook(lambda _, inputs, __: read.append(tuple(inputs[0].shape[:2])))
    answer_each(model, processor, QUESTIONS, [small.picture(80, 40)], 3)
    ids = [processor(small.ask(f"<image>\n{question}"), [small.picture(80, 40)]) for question in QUESTIONS]
    start, longest = common_start(ids), max(b.input_ids.shape[1] for b in ids)
    assert looked == [3]        # tiles: a global view and two local ones
    assert start > ids[0].image_mask.sum() and read == [(1, start), (3, longest - start), (3, 1), (3, 1)]


@torch.no_grad()
def test_pictures_placed_differently_in_each_question_have_no_common_start(processor):
    model, pictures = model_of(end=-1), [small.picture(42, 42)]
    questions = ["<image> what is it?", "is <image> red?"]
    for question, answer in zip(questions, answer_each(model, processor, questions, pictures, 4), strict=True):
        assert answer == processor.decode(from_scratch(model, processor(small.ask(question), pictures), 4))


def test_a_common_start_leaves_each_conversation_something_to_say():
    assert common_start([text_batch([3, 4, 5, 6]), text_batch([3, 4, 7, 6])]) == 2
    assert common_start([text_batch([3, 4, 5, 6]), text_batch([3, 4])]) == 1
    assert common_start([text_batch([3, 4, 5]), text_batch([3, 4, 5])]) == 2
    assert common_start([text_batch([3, 4, 5, 6]), text_batch([9, 4, 5, 6])]) == 0


def test_what_is_remembered_counts_towards_the_context(processor):
    model = model_of(max_position_embeddings=40)
    with pytest.raises(ValueError, match=r"\d+ tokens do not fit the model's context of 40"):
        answer_each(model, processor, ["what is it? " * 9, "what?"], [small.picture(42, 42)], 4)


# ------------------------------------------------------------------------------------------ a model that says what we want


class Scripted:
    """Answers with given logits, whatever it is asked: step t gives logits[:, t]."""

    def __init__(self, logits, context=100):
        self.logits, self.calls, self.step = logits, [], -1
        self.config = SimpleNamespace(
            language=SimpleNamespace(max_position_embeddings=context, num_hidden_layers=1, eos_token_id=END))
        self.image_newline = torch.zeros(1)
        self.decoder = self

    def embed(self, ids):
        return ids.input_ids[..., None].float() if isinstance(ids, Batch) else ids[..., None].float()

    def __call__(self, x, real, cache):
        self.calls.append((x[..., 0].tolist(), real.tolist(), cache))
        cache.append_real(real)
        return x, []

    def head(self, hidden):
        self.step += 1
        return self.logits[:, self.step]


def says(*rows, vocabulary=6):
    """Logits that make these tokens the likeliest."""
    return torch.nn.functional.one_hot(torch.tensor(rows), vocabulary).float() * 10


PROMPT = text_batch([3, 4, 5])


def test_a_row_that_has_ended_is_filled_with_the_end_token_while_others_go_on():
    two = text_batch([3, 4, 5], [3, 4, 5])
    answer = generate(Scripted(says([2, END, 5, 5, 5, 5], [3, 3, 3, END, 4, 4])), two, 6)
    assert answer.tolist() == [[2, END, END, END], [3, 3, 3, END]]


def test_an_answer_ends_at_its_limit():
    assert generate(Scripted(says([2, 3, 4, 5])), PROMPT, 3).tolist() == [[2, 3, 4]]
    assert generate(Scripted(says([2, 3, 4, 5])), PROMPT, 1).tolist() == [[2]]


def test_an_answer_ends_where_the_context_does():
    """Three tokens asked, five places: two of the answer are read back, and what they lead to is a third."""
    assert generate(Scripted(says([2, 3, 4, 5, 2, 3]), context=5), PROMPT, 100).tolist() == [[2, 3, 4]]


@torch.no_grad()
def test_the_last_token_of_a_full_context_is_as_from_scratch(processor):
    batch = processor(small.ask("how many?"))
    T = batch.input_ids.shape[1]
    model = model_of(end=-1, max_position_embeddings=T + 3)
    assert generate(model, batch, 50)[0].tolist() == from_scratch(model, batch, 4)


def test_a_prompt_longer_than_the_context_is_an_error_that_says_both_lengths(processor):
    model = model_of(max_position_embeddings=24)
    model.embed = lambda batch: pytest.fail("the images were looked at for nothing")
    with pytest.raises(ValueError, match="30 tokens do not fit the model's context of 24"):
        generate(model, prompts(processor)[0], 1)


def test_every_token_is_read_once_and_padding_is_said_to_be_padding():
    model = Scripted(says([2, 3, 4], [4, 3, 2]))
    generate(model, text_batch([3, 4, 5], [4]), 3, prefill_chunk=2)
    assert [call[:2] for call in model.calls] == [
        ([[3, 4], [2, 2]], [[True, True], [False, False]]),
        ([[5], [4]], [[True], [True]]),
        ([[2], [4]], [[True], [True]]),
        ([[3], [3]], [[True], [True]]),
    ] and len({id(cache) for _, _, cache in model.calls}) == 1


def test_the_chooser_is_given_logits_in_float32_and_the_answers_so_far_and_nothing_is_learned():
    heard = []

    def choose(logits, answer):
        heard.append(answer.tolist())
        assert logits.shape == (2, 6) and logits.dtype == torch.float32
        assert not torch.is_grad_enabled()
        return logits.argmax(-1)

    model = Scripted(says([2, END, 5], [3, 4, 5]).bfloat16())
    list(one_by_one(model, text_batch([3, 4, 5], [4]), 3, choose))
    assert heard == [[[], []], [[2], [3]], [[2, END], [3, 4]]]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("options", [
    {"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0},
    {"prefill_chunk": 0}])
def test_an_option_that_makes_no_sense_is_refused_at_once(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} cannot be {value}"):
        write(Scripted(says([2])), PROMPT, **{"max_new_tokens": 5} | options)     # before the first token is asked for


@torch.no_grad()
def test_a_padded_prompt_leaves_no_nan_in_the_cache(processor):
    model, seen = model_of(), []
    original = Cache.append_real
    try:
        Cache.append_real = lambda self, real: seen.append(self) or original(self, real)
        generate(model, processor.batch(prompts(processor)), 2, prefill_chunk=5)
    finally:
        Cache.append_real = original
    layers = seen[0].layers
    assert all(room[..., : layer.length, :].isfinite().all() for layer in layers for room in layer.rooms)


# ------------------------------------------------------------------------------------------ drawing


def drawn(logits, n=4000, temperature=1.0, top_p=1.0):
    """How often each token is drawn."""
    random = torch.Generator().manual_seed(0)
    tokens = sample(torch.tensor([logits]).expand(n, -1), temperature, top_p, random)
    return tokens.bincount(minlength=len(logits)) / n


def test_tokens_are_drawn_with_the_models_probabilities():
    p = torch.tensor([0.1, 0.6, 0.3])
    assert_close(drawn(p.log().tolist()), p, atol=0.03, rtol=0)


def test_temperature_sharpens_and_flattens():
    p = torch.tensor([0.1, 0.6, 0.3])
    for temperature in (0.5, 2.0):
        want = p ** (1 / temperature)
        assert_close(drawn(p.log().tolist(), temperature=temperature), want / want.sum(), atol=0.03, rtol=0)
    assert drawn(p.log().tolist(), temperature=0).tolist() == [0, 1, 0]


@pytest.mark.parametrize("top_p, kept", [
    (0.01, [1]),            # always at least one
    (0.49, [1]),
    (0.51, [1, 2]),         # the smallest set that reaches 0.51: 0.5 alone does not
    (0.74, [1, 2]), (0.76, [1, 2, 3]), (0.99, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3]),
])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
    p = torch.tensor([0.125, 0.5, 0.25, 0.125 - 1e-4])
    p = torch.cat((p[:3] - torch.tensor([0.001, 0, 0]), p[3:] + 0.0011))     # no ties: 0.124, 0.5, 0.25, 0.126
    got = drawn(p.log().tolist(), top_p=top_p)
    assert got.nonzero().flatten().tolist() == kept
    want = torch.zeros(4)
    want[kept] = p[kept] / p[kept].sum()
    assert_close(got, want, atol=0.03, rtol=0)


def test_the_nucleus_is_chosen_after_the_temperature():
    """At 0.5 the squares count, at 2 the roots: the likeliest two have 0.91, 0.75 or 0.63, and three 0.97, 0.90 or 0.83."""
    p = [0.1, 0.5, 0.15, 0.25]
    for temperature, kept in ((0.5, [1, 3]), (1.0, [1, 2, 3]), (2.0, [0, 1, 2, 3])):
        got = drawn(torch.tensor(p).log().tolist(), temperature=temperature, top_p=0.88)
        assert got.nonzero().flatten().tolist() == kept


def test_an_exactly_reached_top_p_is_enough():
    assert drawn(torch.tensor([0.5, 0.25, 0.25]).log().tolist(), top_p=0.5).nonzero().flatten().tolist() == [0]


def test_a_repeated_token_becomes_less_likely_whatever_its_sign():
    logits = torch.tensor([[2.0, -2.0, 4.0, -4.0]])
    assert penalise(logits, torch.tensor([[0, 1, 1]]), 2.0).tolist() == [[1, -4, 4, -4]]      # told twice, punished once
    assert penalise(logits, torch.empty(1, 0, dtype=torch.long), 2.0).tolist() == logits.tolist()
    assert penalise(logits, torch.tensor([[0, 1]]), 0.5).tolist() == [[4, -1, 4, -4]]         # below 1, likelier


def test_each_row_is_punished_for_its_own_words():
    logits = torch.full((2, 3), 6.0)
    assert penalise(logits, torch.tensor([[0], [2]]), 2.0).tolist() == [[3, 6, 6], [6, 6, 3]]


def test_the_penalty_counts_the_answer_and_not_the_prompt():
    """The script wants 3 three times; 3 is also in the prompt. The second time 5 is likelier than half of 3."""
    logits = torch.tensor([[[0, 0, 0, 4.0, 0, 3.0]] * 3])
    assert generate(Scripted(logits), PROMPT, 3, repetition_penalty=2.0).tolist() == [[3, 5, 3]]


def test_the_same_seed_draws_the_same_answer_and_another_seed_another():
    def answer(seed):
        return generate(Scripted(torch.zeros(1, 20, 500)), PROMPT, 20, temperature=1.0, seed=seed).tolist()
    assert answer(7) == answer(7) != answer(8)
    assert answer(None) != answer(None)
    torch.manual_seed(3)
    torch.rand(5)
    assert answer(7) == answer(7)                                   # whatever else was drawn before


def test_drawing_leaves_everyone_elses_random_numbers_alone():
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    generate(Scripted(torch.zeros(1, 20, 500)), PROMPT, 20, temperature=1.0, seed=1)
    assert torch.equal(torch.rand(3), wanted)


# ------------------------------------------------------------------------------------------ streaming


def told(processor, ids):
    """What stream yields when the model says these ids."""
    vocabulary = processor.tokenizer.get_vocab_size()
    model = Scripted(says([*ids, END], vocabulary=vocabulary), context=1000)
    return list(stream(model, processor, small.ask("how many?"), max_new_tokens=100))


def test_a_stream_is_the_answer_in_pieces(processor):
    text = "<|ref|>the fox<|/ref|><|det|>[[580, 270, 999, 900]]<|/det|>, where else? Überall: 狐"
    ids = processor.tokenizer.encode(text, add_special_tokens=False).ids
    pieces = told(processor, ids)
    assert "".join(pieces) == text == processor.decode([*ids, END, 5, 6])
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)       # 狐 is three tokens: it comes whole or not at all


def test_a_stream_stops_before_the_end_token(processor):
    ids = processor.tokenizer.encode("yes", add_special_tokens=False).ids
    assert told(processor, [*ids, END, *ids]) == told(processor, ids)


# ------------------------------------------------------------------------------------------ rows, signs, other end tokens


@pytest.mark.parametrize("end", [1, 4])
def test_an_answer_ends_with_the_end_token_of_the_configuration(end):
    model = Scripted(says([2, 5 - end, 3, 3, 3], [2, 3, end, 2, 3], [end, 3, 3, 3, 3]))
    model.config.language.eos_token_id = end
    assert generate(model, text_batch([3], [3], [3]), 4).tolist() == [
        [2, 5 - end, 3, 3], [2, 3, end, end], [end, end, end, end]]


def test_every_row_is_drawn_from_its_own_probabilities_and_nucleus():
    """Row by row: surely 2, surely 0, and two that are equally likely."""
    p = torch.tensor([[0.01, 0.01, 0.98], [0.98, 0.01, 0.01], [0.02, 0.49, 0.49]])
    random = torch.Generator().manual_seed(0)
    rows = torch.stack([sample(p.log(), 1.0, 0.9, random) for _ in range(200)], dim=1)
    assert [row.unique().tolist() for row in rows] == [[2], [0], [1, 2]]


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.lists(st.integers(0, 3), max_size=5),
       st.sampled_from([0.5, 1.0, 1.25, 2.0]))
def test_a_repeated_token_is_divided_above_zero_and_multiplied_below(logits, answer, penalty):
    want = [x * penalty if x < 0 else x / penalty for x in logits]
    want = [w if token in answer else x for token, (x, w) in enumerate(zip(logits, want, strict=True))]
    got = penalise(torch.tensor([logits], dtype=torch.float64), torch.tensor([answer], dtype=torch.long), penalty)
    assert got[0].tolist() == pytest.approx(want)
