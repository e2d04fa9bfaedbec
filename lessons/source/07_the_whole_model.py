# %% [markdown]
# # 7. The whole model
#
# *40 minutes. Modules: `minivl2/conversation.py`, `minivl2/processor.py`, `minivl2/batch.py`, `minivl2/model.py`,
# `minivl2/config.py`. You need: how many tokens a picture becomes (lesson 3), and what a decoder takes and gives
# (lesson 4).*
#
# All parts are there: tiles, tower, projector, attention, experts. This lesson joins them, and the joints are where
# vision-language models break. Nothing here is hard to compute; nearly all of it can be wrong without an error: a space
# too many, an image one token off, an answer that is learned in the wrong place. The model then trains, and is bad.
#
# **In the paper:** DeepSeek-VL2, figure 2 (the whole), section 2 (the tokens of an image), and the section on training
# (what is learned from in fine-tuning); the conversation format is that of the published processor.
#
# **At the end you will have written** the conversation as one line, the line as ids and labels, the padding of a batch,
# the splicing of pictures into text, and the loss; and you will have trained a model that cannot stop talking.

# %%
import dataclasses

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional as F

import minivl2
from minivl2 import Batch, Config, DeepSeekVL2, Processor, figures, toyworld
from minivl2.batch import IGNORED
from minivl2.conversation import ASSISTANT, BEGIN, END, IMAGE, USER, Piece, pieces
from minivl2.experts import balance_loss
from minivl2.grading import grade
from minivl2.model import Loss
from minivl2.processor import ProcessorConfig
from minivl2.tiling import Size
from minivl2.training.tokenizer import sentences, train_tokenizer
from minivl2.visual_tokens import count

torch.manual_seed(0)
torch.set_num_threads(1)
figures.where()

# %% [markdown]
# ## A conversation is one line of text
#
# A language model continues a text. So a conversation must become a text, whose natural continuation is the answer:
#
# ```
# <begin><|User|>: {question}
#
# <|Assistant|>:{answer}<end><|User|>: {next question} ...
# ```
#
# `<begin>`, `<end>`, `<|User|>`, `<|Assistant|>` and `<image>` are *special tokens*: each is one token, whatever the
# tokenizer thinks of its letters. (Their true spelling is `<｜begin▁of▁sentence｜>`, with bars that are not `|` and a
# line that is not `_`. Import `BEGIN` and `END`, never type them.) The format must be kept to the letter. Here is why:

# %%
toy = Config.named("toy")
processor = Processor(train_tokenizer(sentences(1500), toy.language.vocab_size),
                      ProcessorConfig.of(toy))
for text in (f"{ASSISTANT}:red", f"{ASSISTANT}: red", f"{USER}: which colour?\n\n"):
    print(f"{text!r:>28}  is  {processor.tokenizer.encode(text, add_special_tokens=False).ids}")

# %% [markdown]
# One space more, and the second token is another one, 509 for 36. The two have nothing in common but what training
# taught them, and it taught only one of them. (In larger tokenizers the space sticks to the next word. There a prompt
# that ends with a space is worse: it asks for the second half of a token that begins with a space.)
#
# ### What is learned
# In training the answers are there too, and each piece of the line says whether the model is to learn to write it. The
# answers, yes. The questions, no: we do not want a model that asks. The image, no: it is not made of words. And the
# `END` after each answer, yes: it is the only way to say "I have finished".
#
# Below, a conversation token by token. (Of the picture, the first eight tokens are shown. ↵ is a line end.)

# %%
sample = toyworld.draw("lesson 7", "scenes", (1, 1))
talk = [{"role": "user", "content": "<image>\ncount the things."},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "what size is the star?"},
        {"role": "assistant", "content": "big"}]
figures.rows_of(processor(talk, [sample.images[0]], training=True), processor)

# %% [markdown]
# ### Exercise 1: the line
# `pieces` has checked that roles alternate and stripped the texts; `line_of` gets the turns as `(role, text)` and cuts
# them into pieces. A piece is tokenised by itself, or it is one special token: `BEGIN`, `END`, `IMAGE`. Text around an
# image is cut at the image.
#
# Where the last turn is the assistant's, it is what it has *begun* to say, and the line stays open so that it goes on
# (that is how one makes a model begin its answer with a bracket). Only in training is the last answer complete.

# %% [markdown] tags=["hints"]
# 1. What the user says becomes one string, `f"{USER}: {text}\n\n{ASSISTANT}:"`, which is then cut: `.split(IMAGE)`
#    gives one part more than there are images.
# 2. The system's text is a piece as it is, given. An answer is a piece that is learned, and so is the `END` after it.
# 3. `END` follows an answer if it is not the last turn, or if this is training. At the very end, drop the pieces
#    without text: two images side by side leave one.

# %%
@grade("conversation.line_of")
def line_of(turns: list[tuple[str, str]], training: bool = False) -> list[Piece]:
    """Turns, (role, text), as the pieces of one line. role: "system", "user" or "assistant".

    Piece(text, learned). The first is BEGIN. `<|User|>: ...` and `<|Assistant|>:` are part of the
    question's pieces, and not learned; IMAGE is a piece of its own; answers and the END after
    them are learned. The last answer has its END only in training. No piece is empty.
    """
    ### BEGIN SOLUTION
    line = [Piece(BEGIN, False)]
    for i, (role, text) in enumerate(turns):
        if role == "system":
            line.append(Piece(text, False))
        elif role == "user":
            between_images = f"{USER}: {text}\n\n{ASSISTANT}:".split(IMAGE)
            for k, part in enumerate(between_images):
                line += [Piece(IMAGE, False)] * (k > 0) + [Piece(part, False)]
        else:
            line.append(Piece(text, True))
            if training or i < len(turns) - 1:
                line.append(Piece(END, True))
    return [piece for piece in line if piece.text]
    ### END SOLUTION

# %%
for piece in pieces(talk, training=True):
    print(f"{'learned' if piece.learned else 'given':>8}  {piece.text!r}")

# %% [markdown]
# ## From pieces to ids
#
# An image is one piece, and it will become hundreds of vectors. The line must keep a place for each of them *before*
# anyone has looked at the picture, and it can: how many there are follows from the grid of tiles alone (lesson 3). For
# a grid of $w \times h$ tiles with `side` tokens along each:
#
# $$\mathrm{count} = \underbrace{\mathrm{side}\,(\mathrm{side} + 1)}_\text{global view} + \underbrace{1}_\text{separator} +
# \underbrace{\mathrm{side} \cdot h\,(\mathrm{side} \cdot w + 1)}_\text{local tiles}$$

# %%
for name in ("toy", "small"):
    side = Config.named(name).tokens_per_side
    grids = ((1, 1), (2, 1), (3, 3))
    print(f"{name:>6}:", ", ".join(f"{w} x {h} tiles cost {count((w, h), side)} tokens"
                                   for w, h in grids))

# %% [markdown]
# ### Exercise 2: ids and labels
# Write the step from the line to two lists of equal length: the ids, and the labels. A label is the token itself where
# the model is to learn to write it, and `IGNORED` (-100) elsewhere. Not shifted: *who* has to predict the label is
# decided in the loss, in one place.

# %% [markdown] tags=["hints"]
# 1. Three cases for a piece: `IMAGE`, then its id as often as `count(grid, side)`; `BEGIN` or `END`, then its id;
#    anything else, then `self.tokenizer.encode(text, add_special_tokens=False).ids`.
# 2. The images come in the order of the line: `remaining = iter(grids)` and `next(remaining)` at each.
# 3. `labels += new if learned else [IGNORED] * len(new)`: as many labels as ids, for every piece.

# %%
@grade("processor.Processor.spell")
def spell(self: Processor, line: list[Piece], grids: list[Size]) -> tuple[list[int], list[int]]:
    """The ids of a line, and their labels, as two lists of the same length.

    line: pieces (text, learned). grids: (tiles across, tiles down) of each IMAGE, in order.
    self.special_ids[token] is the id of IMAGE, BEGIN, END; self.config.side the visual tokens
    along a tile. Each other text is encoded by self.tokenizer alone, with nothing added.
    """
    ### BEGIN SOLUTION
    ids, labels = [], []
    remaining = iter(grids)
    for text, learned in line:
        if text == IMAGE:
            new = [self.special_ids[text]] * count(next(remaining), self.config.side)
        elif text in (BEGIN, END):
            new = [self.special_ids[text]]
        else:
            new = self.tokenizer.encode(text, add_special_tokens=False).ids
        ids += new
        labels += new if learned else [IGNORED] * len(new)
    return ids, labels
    ### END SOLUTION

# %% [markdown]
# ## Several at once
#
# A batch is a rectangle, and conversations are not equally long. What is missing is filled with padding, and the side
# matters: on the **left**. Then the last column holds every conversation's last token, where the next one is to be
# written, and a batch of answers grows by one column at a time.
#
# Padding is no part of any sentence. Three things keep it out: the attention mask (nobody looks at it), the positions
# (lesson 4: they count real tokens only), the labels (nothing is learned from it).
#
# ### Exercise 3: padding

# %% [markdown] tags=["hints"]
# 1. `longest` is the largest `b.input_ids.shape[1]`. `F.pad(row, (longest - row.shape[1], 0), value=...)` fills on the
#    left of the last dimension; then `torch.cat` joins the rows.
# 2. The filler: `pad_id` for the ids, `False` for both masks, `IGNORED` for the labels.
# 3. Tiles and grids are not padded, they are joined: images of all rows, in order. Check first that there is a batch at
#    all, and that all or none have labels; otherwise raise a `ValueError` in words.

# %%
@grade("batch.pad_left")
def pad_left(batches: list[Batch], pad_id: int) -> Batch:
    """Several batches as one, padded on the left with pad_id. Masks are False on padding.

    Raises ValueError("there are no conversations ...") for an empty list, and ValueError("some of
    these conversations were made with training=True and some were not") where labels are missing
    in some. Without any labels, the result has labels=None. Changes no batch it is given.
    """
    ### BEGIN SOLUTION
    if not batches:
        raise ValueError("there are no conversations to put into a batch")
    labelled = sum(b.labels is not None for b in batches)
    if labelled not in (0, len(batches)):
        raise ValueError(
            "some of these conversations were made with training=True and some were not")
    longest = max(b.input_ids.shape[1] for b in batches)

    def stack(name: str, filler: int | bool) -> Tensor:
        rows = [getattr(b, name) for b in batches]
        return torch.cat([F.pad(r, (longest - r.shape[1], 0), value=filler) for r in rows])

    return Batch(
        input_ids=stack("input_ids", pad_id),
        attention_mask=stack("attention_mask", False),
        image_mask=stack("image_mask", False),
        tiles=torch.cat([b.tiles for b in batches]),
        grids=torch.cat([b.grids for b in batches]),
        labels=stack("labels", IGNORED) if labelled else None)
    ### END SOLUTION

# %% [markdown]
# Three conversations as one batch. (Padding is drawn shorter than it is, as the pictures are.)

# %%
def answered(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


three = [processor(answered("<image>\nname everything.", "big blue star"), sample.images,
                   training=True),
         processor(answered("what shape is the big thing?", "star"), training=True),
         processor(answered("<image>\ncount the things.", "2"), sample.images, training=True)]
figures.rows_of(processor.batch(three), processor)

# %% [markdown]
# ## Splicing
#
# The decoder reads vectors. A word becomes one by looking up its row in the embedding; a picture's vectors come out of
# the projector. Both have the width $D$, and from here on they are the same kind of thing. So the whole trick of a
# vision-language model is one assignment: wherever `image_mask` is True, put the picture's next vector.
#
# $$x_{b,t} = \begin{cases} \text{the next vector of the pictures} & \text{if } \mathrm{image\_mask}_{b,t} \\
# \mathrm{embed}(\mathrm{id}_{b,t}) & \text{otherwise} \end{cases}$$
#
# "Next" means: in the order in which one reads, row by row through the batch. The processor listed the images in that
# order too, so nobody has to count. And there is a check worth its line: `masked_scatter` takes as many vectors as it
# needs, and says nothing if some are left over.
#
# ### Exercise 4: the splice

# %% [markdown] tags=["hints"]
# 1. `x = self.decoder.embed(batch.input_ids)` embeds everything, `<image>` included. Without images that is all.
# 2. `vectors = torch.cat(self.see(batch.tiles, batch.grids))` are the vectors of all images, (gaps, D), in reading
#    order.
# 3. `x.masked_scatter(mask, vectors)` writes the numbers of `vectors`, one after the other, where the mask is True. The
#    mask must cover a whole vector: `batch.image_mask[..., None]`.

# %%
@grade("model.DeepSeekVL2.embed")
def embed(self: DeepSeekVL2, batch: Batch) -> Tensor:
    """(B, T, D): what the decoder reads. Words' embeddings, the images' vectors in their places.

    self.decoder.embed(ids) gives (B, T, D); self.see(tiles, grids) a list with a tensor (tokens, D)
    for each image. Without images: the words alone. Where the number of gaps (image_mask) is not
    that of the vectors, raise ValueError("the text has room for {gaps} visual tokens, but the
    images have {vectors}").
    """
    ### BEGIN SOLUTION
    x = self.decoder.embed(batch.input_ids)
    if len(batch.grids) == 0:
        return x
    vectors = torch.cat(self.see(batch.tiles, batch.grids))
    gaps = int(batch.image_mask.sum())
    if gaps != len(vectors):
        raise ValueError(
            f"the text has room for {gaps} visual tokens, but the images have {len(vectors)}")
    return x.masked_scatter(batch.image_mask[..., None], vectors.type_as(x))
    ### END SOLUTION

# %% [markdown]
# Before and after, for one conversation: each row is a token, each column one of its first 64 numbers. Before, all
# places of the image hold the same vector, that of the word `<image>`; you can see where it begins and ends.

# %%
torch.manual_seed(0)
model = minivl2.build("toy")
batch = processor(answered("<image>\nwhat is this?", "a thing"), sample.images, training=True)
with torch.no_grad():
    before, after = model.decoder.embed(batch.input_ids)[0], model.embed(batch)[0]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for axis, x, title in zip(axes, (before, after), ("every token looked up", "pictures put in"),
                          strict=True):
    axis.imshow(x[:, :64] / x.std(1, keepdim=True), cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
    axis.set(title=title, xlabel="first 64 of 128 numbers")
axes[0].set_ylabel("token");

# %% [markdown]
# (In the right picture you find the newlines after each row of tokens: the same vector, every fifth row. Each row was
# divided by its own size, to be seen.)
#
# ## The loss
#
# The decoder gives a vector for every token, the head makes logits of it: a score for each word that might come *next*.
# So position $t$ is judged by the label at $t+1$. With $\mathcal{A}$ the positions before a label,
#
# $$L_\text{text} = \frac{1}{|\mathcal{A}|} \sum_{t \in \mathcal{A}} -\log p\,(\mathrm{label}_{t+1} \mid \text{tokens and
# pictures up to } t), \qquad L = L_\text{text} + \alpha \sum_\text{layers} L_\text{balance}$$
#
# with the balance loss of lesson 6 and $\alpha$ = `aux_loss_alpha`. The head is asked at $\mathcal{A}$ only: Tiny's has
# 129,280 rows, and of a thousand tokens a picture takes, none has a label.
#
# ### Exercise 5: the loss
# `batch.learned` is $\mathcal{A}$ as a mask of shape (B, T-1): True at $t$ if the label at $t+1$ is not `IGNORED` and
# $t$ is not padding. (The second half is needed because the begin token has a label, as published. Nothing comes before
# it, except, in a batch, padding.)

# %% [markdown] tags=["hints"]
# 1. `hidden, routings = self.decoder(self.embed(batch), batch.attention_mask)`. Positions 0 to T-2 can predict
#    something: `hidden[:, :-1]`. Their labels are `batch.labels[:, 1:]`. Both indexed with `batch.learned`.
# 2. `each = F.cross_entropy(logits.float(), labels, reduction="none")`, and `text` is its mean.
# 3. `balance` is the sum over `routings` of `balance_loss(routing, batch.attention_mask, lang.seq_aux)`; of an empty
#    list it must be a tensor, too: begin the sum with `torch.zeros_like(text)`.

# %%
@grade("model.DeepSeekVL2.loss")
def loss(self: DeepSeekVL2, batch: Batch) -> Loss:
    """Loss(total, text, each, balance, routings).

    each (labelled tokens,): cross-entropy in float32, row after row; text: its mean.
    balance: sum over layers of balance_loss(routing, real, lang.seq_aux), lang = config.language.
    total = text + lang.aux_loss_alpha * balance. routings: as self.decoder returns them.
    Without labels: ValueError("the batch has no labels: make it with processor(messages, images,
    training=True)").
    """
    ### BEGIN SOLUTION
    if batch.labels is None:
        raise ValueError(
            "the batch has no labels: make it with processor(messages, images, training=True)")
    hidden, routings = self.decoder(self.embed(batch), batch.attention_mask)
    learned, lang = batch.learned, self.config.language
    logits = self.decoder.head(hidden[:, :-1][learned])
    each = F.cross_entropy(logits.float(), batch.labels[:, 1:][learned], reduction="none")
    text = each.mean()
    balance = sum((balance_loss(r, batch.attention_mask, lang.seq_aux) for r in routings),
                  torch.zeros_like(text))
    return Loss(text + lang.aux_loss_alpha * balance, text, each, balance, routings)
    ### END SOLUTION

# %% [markdown]
# A fresh model should find every word about equally likely, so its loss should be near $\ln V$, with $V$ the
# vocabulary. (A little above, to be exact: random scores are not all alike.) It is
# the first thing to look at when a model does not learn:

# %%
with torch.no_grad():
    batch = processor.batch(three)
    print(f"loss {model.loss(batch).text:.2f}, ln(640) = {torch.tensor(640.0).log():.2f}")

# %% [markdown]
# ## What goes wrong quietly
#
# Three models, the same weights at the start, the same six pictures with their descriptions, fifty steps each: enough
# to learn them by heart. One with the loss you know. One whose loss forgets the shift: position $t$ is judged by the
# label at $t$. One that does not learn `END`.

# %%
samples = [toyworld.draw(f"by heart {i}", "scenes", (1, 1)) for i in range(6)]
captions = [next(q for q in s.questions if q.ability == "caption") for s in samples]
talks = [toyworld.messages([question]) for question in captions]
lessons = processor.batch([processor(t, s.images, training=True)
                           for t, s in zip(talks, samples, strict=True)])
asked = processor.batch([processor(t[:1], s.images) for t, s in zip(talks, samples, strict=True)])


def not_shifted(model: DeepSeekVL2, batch: Batch) -> Tensor:
    hidden, _ = model.decoder(model.embed(batch), batch.attention_mask)
    logits = model.decoder.head(hidden[:, 1:][batch.learned])
    return F.cross_entropy(logits, batch.labels[:, 1:][batch.learned])


def by_heart(kind: str, steps: int = 50) -> tuple[DeepSeekVL2, list[float]]:
    torch.manual_seed(0)
    model, batch = minivl2.build("toy"), lessons
    if kind == "END not learned":
        ends = batch.labels == processor.special_ids[END]
        batch = dataclasses.replace(batch, labels=batch.labels.masked_fill(ends, IGNORED))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(steps):
        value = not_shifted(model, batch) if kind == "not shifted" else model.loss(batch).total
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return model.eval(), losses


trained = {kind: by_heart(kind) for kind in ("right", "not shifted", "END not learned")}

# %%
figure, axis = plt.subplots(figsize=(7, 2.4), layout="constrained")
for (kind, (_, losses)), colour in zip(trained.items(), ("#3bb273", "#d62246", "#f4a261"),
                                       strict=True):
    axis.plot(losses, colour, label=kind)
axis.set(yscale="log", xlabel="step", ylabel="loss")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)

for kind, (model, _) in trained.items():
    answers = minivl2.generate(model, asked, max_new_tokens=24)
    print(f"{kind}:")
    for ids in answers[[1, 4]]:
        text = processor.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        print(f"    {text.replace(END, '<end>')[:88]}")
print("wanted:")
for question in (captions[1], captions[4]):
    print(f"    {question.answer}")

# %% [markdown]
# All three curves fall as a loss should, and the best is the one without the shift. It has learned to repeat what it
# reads, a task that needs neither picture nor question. (Its first word comes from nowhere: no loss ever asked for what
# follows the colon.) The one without `END` says the right thing, or most of it, and goes on. In the first, what follows
# the first `END` is filler: generation stops a row there, and waits for the others.
#
# The moral is not "be careful". It is: let the model *answer* before you believe its loss.
#
# Both questions above are the same: "describe the picture." So what tells the answers apart can only have come through
# the splice. Give each the other's picture, and the answers change places:

# %%
model = trained["right"][0]
swapped = processor.batch([processor(talks[i][:1], samples[j].images) for i, j in ((1, 4), (4, 1))])
for ids in minivl2.generate(model, swapped, max_new_tokens=24):
    print(processor.decode(ids.tolist()))

# %% [markdown]
# ## One model, four sizes
#
# What makes this a toy and not the 27-billion-parameter model is a table of numbers, `minivl2/config.py`. Every number
# stands under the name that the published `config.json` uses, with the published defaults, because a published file
# leaves out what equals its default. No other module looks into a dictionary, and none asks which model it is.

# %%
rows = {"hidden_size": "width D", "num_hidden_layers": "layers", "num_attention_heads": "heads",
        "kv_lora_rank": "latent C", "n_routed_experts": "experts E",
        "num_experts_per_tok": "chosen K", "moe_intermediate_size": "inside an expert F",
        "scoring_func": "gate", "vocab_size": "vocabulary V"}
names = ("toy", "tiny", "small", "base")
print(f"{'':<20}" + "".join(f"{name:>10}" for name in names))
for field, says in rows.items():
    values = [getattr(Config.named(name).language, field) for name in names]
    print(f"{says:<20}" + "".join(f"{'-' if v is None else v:>10}" for v in values))

# %% [markdown]
# A configuration that cannot be built is refused before anything is built, in words, by one function (`check`):

# %%
try:
    dataclasses.replace(Config.named("tiny"), language=dataclasses.replace(
        Config.named("tiny").language, num_experts_per_tok=65))
except ValueError as error:
    print(error)

# %% [markdown]
# ## What you have now
# Everything between a list of messages and a number to minimise: `minivl2/conversation.py`, `processor.py`, `batch.py`,
# `model.py`. What you have not written of them: the checks of `conversation.py`, `Processor.tile` (lesson 1's functions
# in a row), and `without_twins` in `model.py`, which saves looking twice at a picture of one tile. Read that one: it is
# short, and a pretty puzzle.
#
# Then train it on more than six pictures: [lesson 8](08_training.ipynb).
