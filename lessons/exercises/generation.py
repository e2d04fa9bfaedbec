"""Exercises on minivl2/generation.py, of lesson 09. Graded by tests/test_generation.py."""

import types

import torch

from minivl2 import generation
from minivl2.batch import Batch
from minivl2.grading.exercise import Exercise, Mistake

END = 1

# ------------------------------------------------------------------------------------------ the loop


class Scripted:
    """Stands in for a model. What it is to say is written down; what it is given to read is noted."""

    def __init__(self, *rows, context=100):
        self.script, self.step, self.read = torch.tensor(rows), -1, []
        self.config = types.SimpleNamespace(language=types.SimpleNamespace(
            max_position_embeddings=context, num_hidden_layers=1, eos_token_id=END))
        self.decoder = self

    def embed(self, ids):
        return (ids.input_ids if isinstance(ids, Batch) else ids)[..., None].float()

    def __call__(self, x, real, cache):
        self.read += [x[..., 0], real.float()]
        cache.append_real(real)
        return x, []

    def head(self, hidden):
        self.step += 1
        return torch.nn.functional.one_hot(self.script[:, self.step], 8) * 10.0 + hidden[:, :1]


def some_loops():
    """Two rows that end at different times; one that never ends, read in pieces. What is said, read, and told."""
    outcomes = []
    for most, chunk, rows in ((8, None, ([2, END] + 6 * [5], [3, 4, 3, END] + 4 * [4])),
                              (4, 2, ([2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2]))):
        ids = torch.tensor([[6, 7, 5], [2, 2, 4]])
        nothing = torch.zeros_like(ids, dtype=torch.bool)
        real = torch.tensor([[True] * 3, [False, False, True]])
        batch = Batch(ids, real, nothing, torch.empty(0, 3, 2, 2), torch.empty(0, 2))
        model = Scripted(*rows)

        def choose(logits, answer, outcomes=outcomes):
            outcomes += [logits, answer.float()]
            return logits.argmax(-1)

        outcomes += [token.float() for token in generation.one_by_one(model, batch, most, choose, chunk)]
        outcomes += model.read
    return outcomes


# ------------------------------------------------------------------------------------------ choosing


def some_draws():
    """How often each of five tokens is drawn, to a tenth; and which are never drawn."""
    p = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    outcomes = []
    for temperature, top_p in ((1, 1), (1, 0.75), (1, 0.6), (0.5, 0.7), (2, 0.7), (2, 1), (0, 1)):
        random = torch.Generator().manual_seed(0)
        drawn = generation.sample(p.log().expand(4000, -1), temperature, top_p, random).bincount(minlength=5)[:5] / 4000
        outcomes += [(10 * drawn).round(), (drawn > 0).float()]
    return outcomes


def nucleus_before_temperature(logits, temperature, top_p, random):
    if temperature == 0:
        return logits.argmax(-1)
    likely, token = logits.softmax(-1).sort(-1, descending=True)
    out = likely.cumsum(-1) - likely >= top_p
    kept = (logits.gather(1, token) / temperature).masked_fill(out, -torch.inf).softmax(-1)
    return token.gather(1, kept.multinomial(1, generator=random))[:, 0]


def unlikely_ones_dropped(logits, temperature, top_p, random):
    if temperature == 0:
        return logits.argmax(-1)
    likely = (logits / temperature).softmax(-1)
    best = likely.max(-1, keepdim=True).values
    return likely.masked_fill(likely < (1 - top_p) * best, 0).multinomial(1, generator=random)[:, 0]


# ------------------------------------------------------------------------------------------ the penalty


def some_penalties():
    logits = torch.tensor([[2.0, -2.0, 4.0, -4.0, 0.0], [3.0, 1.0, -1.0, 5.0, -6.0]])
    return [generation.penalise(logits, torch.tensor(answer), penalty) for answer, penalty in (
        ([[0, 1, 1], [3, 2, 4]], 2.0), ([[3], [4]], 1.5), ([[2, 2], [0, 0]], 0.5))]


def as_often_as_said(logits, answer, penalty):
    logits = logits.clone()
    for row, said in zip(logits, answer, strict=True):
        for token in said:
            row[token] = row[token] * penalty if row[token] < 0 else row[token] / penalty
    return logits


def for_all_rows(logits, answer, penalty):
    said = answer.flatten()
    told = logits[:, said]
    return logits.scatter(1, said.expand(len(logits), -1), torch.where(told < 0, told * penalty, told / penalty))


def in_place(logits, answer, penalty):
    told = logits.gather(1, answer)
    return logits.scatter_(1, answer, torch.where(told < 0, told * penalty, told / penalty))


BY_SIGN = "torch.where(told < 0, told * penalty, told / penalty)"

EXERCISES = (
    Exercise("generation.one_by_one", "greedy or batch_is or row_that or answer_ends or full_context or prompt_longer "
             "or read_once or no_nan or chooser", some_loops, (
        Mistake("ended rows go on", {".masked_fill(ended, lang.eos_token_id)": ""},
                "a row goes on after its end. Once it has said the end token it says nothing else."),
        Mistake("one ends, all end", {"ended.all()": "ended.any()"},
                "you stop as soon as one row has ended; the others have not finished yet."),
        Mistake("end token kept back", {"        yield token\n        ended = ended | (token == lang.eos_token_id)\n":
                                        "        ended = ended | (token == lang.eos_token_id)\n        if ended.all():\n"
                                        "            return\n        yield token\n"},
                "the last end token is not yielded: you stop before it. It is part of the answer."),
        Mistake("never ends", {"ended.all() or ": ""},
                "you go on after all rows have ended: nothing but end tokens comes."),
        Mistake("the end token is always 1", {"lang.eos_token_id": "1"}),
        Mistake("one too many", {"answer.shape[1] == max_new_tokens": "answer.shape[1] > max_new_tokens"}),
        Mistake("the first token's logits", {"hidden[:, -1]": "hidden[:, 0]"},
                "what follows the prompt is asked of its first token, or of the first of its last chunk. Ask the last one."),
        Mistake("padding read as text", {"read(model, batch, cache":
                                        "read(model, Batch(**vars(batch) | {'attention_mask': real}), cache",
                                        "B, T = batch": "real = batch.attention_mask | True\n    B, T = batch"},
                "padding is read as if it were text: hand batch.attention_mask on, chunk by chunk."),
        Mistake("the answer is padding", {"torch.ones_like(ended)[:, None]": "torch.zeros_like(ended)[:, None]"},
                "the new tokens are read as padding, so nobody will look at them: they are real, True."),
        Mistake("all at once", {"cache, prefill_chunk)": "cache)"},
                "prefill_chunk is not used: the prompt is read all at once."),
        Mistake("the last token told", {"choose(logits, answer)": "choose(logits, answer[:, -1:])"},
                "choose is told the last token only; it wants the whole answer so far."),
        Mistake("the prompt told", {"choose(logits, answer)": "choose(logits, torch.cat((batch.input_ids, answer), 1))"},
                "choose is told prompt and answer; it wants the answer only, or words of the question would be punished."),
        Mistake("no limit but its own", {" or cache.length == capacity": ""}),
        Mistake("context left out", {"check_length(length, lang.max_position_embeddings)": "pass"}),
        Mistake("in the model's precision", {"decoder.head(hidden[:, -1]).float()": "decoder.head(hidden[:, -1])"}),
        Mistake("with gradients", {"@torch.no_grad()": ""}),
    )),
    Exercise("generation.sample", "drawn or temperature or nucleus or top_p or seed or random_numbers", some_draws, (
        Mistake("times the temperature", {"logits / temperature": "logits * temperature"},
                "you multiply by the temperature: yours gets surer where it should get bolder. Divide."),
        Mistake("after the softmax", {"(logits / temperature).softmax(-1)": "(logits.softmax(-1) / temperature)"},
                "divided probabilities stay in the same proportions. Divide the logits, before the softmax."),
        Mistake("the place, not the token", {"token.gather(1, drawn)[:, 0]": "drawn[:, 0]"},
                "you return the place in the sorted line, 0 for the likeliest, and not the token that stands there."),
        Mistake("one too few", {"before = likely.cumsum(-1) - likely": "before = likely.cumsum(-1)",
                                "likely.masked_fill(before >= top_p, 0)": "likely.masked_fill((before >= top_p) & "
                                "(torch.arange(likely.shape[-1]) > 0), 0)"},
                "the nucleus is one token too small: the one with which top_p is reached belongs to it."),
        Mistake("one too many", {"likely.cumsum(-1) - likely": "likely.cumsum(-1) - likely - likely.roll(1, -1)"}),
        Mistake("exactly reached is not enough", {"before >= top_p": "before > top_p"}),
        Mistake("the unlikeliest", {"descending=True": "descending=False"},
                "sorted from the unlikeliest up: your nucleus is the tail."),
        Mistake("nucleus before temperature", nucleus_before_temperature,
                "you cut the nucleus from the model's own probabilities. Temperature first."),
        Mistake("a threshold", unlikely_ones_dropped,
                "you drop tokens that are unlikely by themselves. The nucleus is the smallest set of likeliest tokens that "
                "*together* reach top_p."),
        Mistake("top_p not used", {".masked_fill(before >= top_p, 0)": ""}, "top_p is not used."),
        Mistake("always the likeliest", {"if temperature == 0": "if True"},
                "you never draw: the likeliest token is right only for temperature 0."),
        Mistake("temperature 0", {"if temperature == 0": "if False"}),
        Mistake("all rows like the first", {".multinomial(1, generator=random)":
                                            "[:1].multinomial(len(logits), True, generator=random).mT"}),
        Mistake("the global generator", {", generator=random": ""}),
    )),
    Exercise("generation.penalise", "repeated_token or own_words or penalty_counts", some_penalties, (
        Mistake("always divided", {BY_SIGN: "told / penalty"},
                "divided, a logit below 0 goes up: what was unlikely becomes likelier by being repeated. Multiply those."),
        Mistake("always multiplied", {BY_SIGN: "told * penalty"},
                "multiplied, a logit above 0 goes up: repetition is rewarded. Divide those."),
        Mistake("the wrong way", {"told < 0": "told > 0"},
                "the wrong way round: divide what is above 0, multiply what is below."),
        Mistake("subtracted", {BY_SIGN: "told - penalty"},
                "the penalty is a factor, not something to subtract: 1 is no penalty."),
        Mistake("as often as said", as_often_as_said,
                "a token that was said twice is punished twice. Once is once, however often it was said."),
        Mistake("for all rows", for_all_rows,
                "every row is punished for the words of all rows; each has its own answer."),
        Mistake("all tokens", lambda logits, answer, penalty: torch.where(logits < 0, logits * penalty, logits / penalty),
                "all tokens are punished; only those in the answer are to be."),
        Mistake("the sign of a probability", {"told < 0": "told < 1"}),
        Mistake("never again", {BY_SIGN: "torch.full_like(told, -torch.inf)"},
                "you forbid what has been said. A text cannot do without repeating its letters: make it less likely only."),
        Mistake("only the last token", {"gather(1, answer)": "gather(1, answer[:, -1:])",
                                        "scatter(1, answer,": "scatter(1, answer[:, -1:],"}),
        Mistake("in place", in_place),
    )),
)
