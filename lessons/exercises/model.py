"""Exercises on minivl2/model.py, of lesson 07. Graded by tests/test_model.py."""

import dataclasses
import functools

import small
import torch
from torch.nn import functional as F

from minivl2.batch import IGNORED
from minivl2.grading.exercise import TESTS, Exercise, Mistake
from minivl2.model import DeepSeekVL2, Loss


@functools.cache
def a_batch():
    """Three conversations of different lengths: two images, one, none."""
    processor = small.processor(TESTS / "goldens")
    first, second, third = (small.picture(42 + 42 * i, 42, seed=i) for i in range(3))
    talks = (("<image> and <image>?", [first, second], "two"), ("what is this <image>", [third], "the small brown fox"),
             ("how many?", [], "4"))
    return processor.batch([
        processor(small.answered(text, answer), images, training=True) for text, images, answer in talks])


def some_embeddings():
    model = small.randomised(DeepSeekVL2(small.config()))
    text = small.processor(TESTS / "goldens")(small.ask("how many?"))
    return [model.embed(a_batch()).detach(), model.embed(text).detach()]


def some_losses():
    whole_batch = small.randomised(DeepSeekVL2(small.config(seq_aux=False)))
    each_row = small.randomised(DeepSeekVL2(small.config(num_hidden_layers=4)))
    plain = dataclasses.replace(a_batch(), labels=a_batch().labels.masked_fill(a_batch().labels == 7, IGNORED))
    numbers = []
    for model in (whole_batch, each_row):
        loss = model.loss(plain)
        numbers += [loss.total.detach(), loss.text.detach(), loss.balance.detach()]
    return numbers


def every_row_from_the_first_image(self, batch):
    x = self.decoder.embed(batch.input_ids)
    if len(batch.grids) == 0:
        return x
    vectors = torch.cat(self.see(batch.tiles, batch.grids))
    rows = []
    for row, mask in zip(x, batch.image_mask, strict=True):
        rows.append(row.masked_scatter(mask[:, None], vectors))
    return torch.stack(rows)


def in_front_of_the_text(self, batch):
    x = self.decoder.embed(batch.input_ids)
    if len(batch.grids) == 0:
        return x
    vectors = iter(torch.cat(self.see(batch.tiles, batch.grids)))
    rows = []
    for row, mask in zip(x, batch.image_mask, strict=True):
        images = [next(vectors) for _ in range(int(mask.sum()))]
        rows.append(torch.cat((torch.stack(images), row[~mask])) if images else row)
    return torch.stack(rows)


def mean_of_conversations(self, batch):
    hidden, routings = self.decoder(self.embed(batch), batch.attention_mask)
    logits, means = self.decoder.head(hidden[:, :-1]).float(), []
    for row, labels, learned in zip(logits, batch.labels[:, 1:], batch.learned, strict=True):
        means.append(F.cross_entropy(row[learned], labels[learned]))
    return finish(self, batch, torch.stack(means).mean(), torch.stack(means), routings)


def finish(self, batch, text, each, routings):
    from minivl2.experts import balance_loss
    lang = self.config.language
    balance = sum(balance_loss(r, batch.attention_mask, lang.seq_aux) for r in routings)
    return Loss(text + lang.aux_loss_alpha * balance, text, each, balance, routings)


EXERCISES = (
    Exercise("model.DeepSeekVL2.embed", "every_image or gives_what or gaps or logits_are or every_parameter",
             some_embeddings, (
        Mistake("the picture is not put in", {
            "return x.masked_scatter(batch.image_mask[..., None], vectors.type_as(x))": "return x"},
                "the picture was never put in: every place of an image still holds the embedding of the word <image>."),
        Mistake("added, not put in", {"return x.masked_scatter(": "return x + torch.zeros_like(x).masked_scatter("},
                "you add the image's vectors to the embedding of <image>. They take its place."),
        Mistake("every row from the first image", every_row_from_the_first_image,
                "every row of the batch begins again with the first image. The vectors go on from row to row: the "
                "second "
                "conversation's images are its own."),
        Mistake("in front of the text", in_front_of_the_text,
                "the images are put in front of the text. They belong where image_mask says, in the middle of it."),
        Mistake("images in the wrong order", {"torch.cat(self.see(batch.tiles, batch.grids))":
                                              "torch.cat(self.see(batch.tiles, batch.grids)[::-1])"},
                "the images are right but in the wrong order: the first gap gets the last image."),
        Mistake("column by column", {"x.masked_scatter(batch.image_mask[..., None], vectors.type_as(x))":
                                     "x.mT.masked_scatter(batch.image_mask[:, None], vectors.type_as(x)).mT"},
                "the numbers are put in column by column: a token gets pieces of many vectors. Broadcast the mask "
                "over the last "
                "dimension, image_mask[..., None], and let the vectors lie in rows."),
        Mistake("a text alone fails", {"if len(batch.grids) == 0": "if False"},
                "a batch without images is an error with you: there is nothing to concatenate. Return the words as "
                "they are."),
        Mistake("not counted", {"gaps != len(vectors)": "gaps > len(vectors)"}),
        Mistake("too few not noticed", {"gaps != len(vectors)": "gaps < len(vectors)"}),
        Mistake("no gradient to the eye", {"vectors.type_as(x)": "vectors.detach().type_as(x)"}),
        Mistake("embedding scaled", {"self.decoder.embed(batch.input_ids)":
                                     "self.decoder.embed(batch.input_ids) * self.config.language.hidden_size**0.5"},
                "the words' embeddings are multiplied by the root of the width, as in the first transformer; not in "
                "this one."),
    )),
    Exercise("model.DeepSeekVL2.loss", "loss or learn or balance or costs", some_losses, (
        Mistake("not shifted", {"hidden[:, :-1][learned]": "hidden[:, 1:][learned]"},
                "every token is asked to predict itself, which it is reading. Shift: position t predicts the label at "
                "t + 1."),
        Mistake("shifted twice", {"hidden[:, :-1][learned]": "hidden.roll(1, 1)[:, :-1][learned]"},
                "every position predicts the token after the next: the shift by one is done twice."),
        Mistake("padding learns the begin token", {"learned = batch.learned": "learned = batch.labels[:, 1:] != -100"},
                "the last padding before a conversation is asked to predict its begin token, which has a label. "
                "batch.learned leaves that out."),
        Mistake("questions too", {"learned = batch.learned": "learned = batch.attention_mask[:, :-1]",
                                  "batch.labels[:, 1:]": "batch.input_ids[:, 1:]"},
                "you learn every token, the questions and the images' places among them. Only what has a label is "
                "learned."),
        Mistake("mean of conversations", mean_of_conversations,
                "you averaged each conversation first, then those means. The mean goes over all labelled tokens of "
                "the batch: "
                "one long answer counts more than one short."),
        Mistake("sum", {"each.mean()": "each.sum()"},
                "the losses of the tokens are added; take their mean, or a larger batch is a larger step."),
        Mistake("divided by all tokens", {"each.mean()": "each.sum() / batch.labels.numel()"},
                "you divide by the number of all tokens. Divide by the number of those that are learned."),
        Mistake("balance unweighted", {"lang.aux_loss_alpha * balance": "balance"},
                "the balance loss is added with weight 1. Its weight is aux_loss_alpha."),
        Mistake("no balance", {"text + lang.aux_loss_alpha * balance": "text"},
                "the balance loss is computed but not part of the total."),
        Mistake("padding balanced", {"balance_loss(r, batch.attention_mask": "balance_loss(r, batch.attention_mask | True"},
                "the balance loss counts padding as tokens: give it the attention mask."),
        Mistake("mean of layers", {"text + lang": "text + len(routings)**-1 * lang"},
                "the balance losses of the layers are added, not averaged."),
        Mistake("always by sequence", {", lang.seq_aux)": ")"}),
        Mistake("the model's precision", {"logits.float()": "logits"}),
        Mistake("softmax first", {"logits.float()": "logits.float().softmax(-1)"},
                "a softmax stands before cross_entropy, which takes one itself: it wants logits."),
        Mistake("no error without labels", {"if batch.labels is None": "if False"}),
    )),
)
