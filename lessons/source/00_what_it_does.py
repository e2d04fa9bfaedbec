# %% [markdown]
# # 0. What a vision-language model does
#
# *30 minutes. Modules: `minivl2/conversation.py`, `minivl2/processor.py`, `minivl2/record.py`. You need: a little PyTorch;
# nothing else.*
#
# A vision-language model is shown a picture, is asked about it in words, and answers in words. Here is one that you can
# ask yourself, now: a tiny one, 2.8 million parameters, built like DeepSeek-VL2 and trained from nothing in twenty-three hours
# on two cores. We draw something, ask, and then follow one question through it: what becomes of the picture, where the
# words come in, how an answer comes out. How each part works is left to the other lessons; here you see what there is
# to build.
#
# **In the paper:** [DeepSeek-VL2](https://arxiv.org/abs/2412.10302), figure 2: tiles, vision encoder, adaptor, language
# model. The map below is that figure as one row. Each lesson lights the boxes it is about; this one lights all.
#
# **At the end you will have written** the first step of this way, which makes a question about a picture a
# conversation, and the last two: numbers to probabilities, and tokens to text.

# %%
import colorsys
import json
import math

import matplotlib.pyplot as plt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import minivl2
from minivl2 import cli, conversation, figures, grounding, record, toyworld
from minivl2.conversation import END, IMAGE
from minivl2.generation import stream
from minivl2.grading import grade
from minivl2.places import GLOBAL, places
from minivl2.processor import Processor
from minivl2.toyworld.things import COLOURS, SHAPES, stencil
from minivl2.xray import XRay

torch.set_num_threads(1)
figures.where()

# %% [markdown]
# ## Draw, and ask
#
# The model lies in `weights/toy`, beside this folder. If the next cell says that there is no toy model: `git checkout
# weights/toy`, at the top of the repository, brings it back, and `make train` trains another, in ten minutes.
#
# It has grown up in a small world: things in six shapes, eight colours and two sizes, on a greyish ground. So let us
# draw in the manner of that world. `paint` takes words and a place, from 0 to 1 across and down.

# %%
model, processor = minivl2.load(cli.default_weights())


def paint(*things, ground=(150, 150, 150)) -> Image.Image:
    """paint(("big red star", 0.3, 0.3), ...): 112 x 112 pixels, a thing's middle at its place."""
    picture = Image.new("RGB", (112, 112), ground)
    for words, x, y in things:
        size, colour, shape = words.split()
        mask = stencil(shape, {"big": 37, "small": 26}[size])
        corner = round(112 * x - mask.width / 2), round(112 * y - mask.height / 2)
        picture.paste(COLOURS.get(colour, colour), corner, mask)
    return picture


def ask(question: str, *pictures: Image.Image) -> str:
    return "".join(stream(model, processor, conversation.about(question, len(pictures)), pictures))


circle_and_square = ("small blue circle", 0.75, 0.25), ("small green square", 0.6, 0.75)
picture = paint(("big red star", 0.3, 0.3), *circle_and_square)
picture.resize((224, 224), Image.NEAREST)

# %%
for question in ("what colour is the star?", "what shape is the blue thing?",
                 "is the red star big or small?", "is there a red circle?",
                 "what is right of the red star?", "what is the largest thing?",
                 "how many things are there?", "describe the picture."):
    print(f"{question:<35}{ask(question, picture)}")

# %% [markdown]
# Eight questions, eight right answers. We shall come to what it cannot do.
#
# Your turn, before any theory. Change the things above, move them, draw with `ImageDraw` whatever you like, and ask.
# The questions have to be put in the words of its world, as those above. Or play here (in Jupyter with ipywidgets there
# are menus; elsewhere you see one picture):

# %%
def played(colour: str, shape: str, across: int, down: int, question: str) -> figures.Drawing:
    drawn = paint((f"big {colour} {shape}", across / 100, down / 100), *circle_and_square)
    figure = figures.Drawing(figsize=(6, 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
    left.imshow(drawn)
    right.text(0, 0.6, question, fontsize=10)
    right.text(0, 0.3, ask(question, drawn) or "(nothing)", fontsize=13, weight="bold")
    for axis in (left, right):
        axis.axis("off")
    return figure


figures.Playable(
    played, colour=("purple", list(COLOURS)), shape=("cross", list(SHAPES)),
    across=(30, range(15, 86, 5)), down=(70, range(15, 86, 5)),
    question=("what is left of the green square?",
              ["what is left of the green square?", "what is above the blue circle?",
               "what is the largest thing?", "is there a red star?",
               "how many things are there?", "describe the picture."]))

# %% [markdown]
# From a terminal the same model answers about any file. (`minivl2 ask` takes `weights/toy` unless told `--weights`, and
# draws boxes, if there are some in the answer, on `boxes.png`.)
#
# ```
# minivl2 ask picture.png "what colour is the star?"
# ```
#
# ## One question, all the way through
#
# **What colour is the star?** How does `red` come of it?
#
# ### A picture becomes tiles
#
# Pictures have all sizes; the part of the model that sees takes squares of one size, 56 x 56 pixels in the toy, 384 x
# 384 in DeepSeek-VL2. So a picture is shown twice: once whole, scaled into one square (the *global view*), and once in
# pieces, as large as they come (the *local view*).

# %%
figures.draw_tiling(picture, processor.config.candidate_resolutions, side=processor.config.side)

# %% [markdown]
# ### Tiles become tokens
#
# A language model reads a line of *tokens*: pieces of text, each a number, for which it looks up a vector. The vision
# tower turns each tile into vectors, and the projector makes these such that they can stand in the same line. To the
# language model a picture is just a long word in a language of its own: 93 tokens here. (A newline token ends each row
# of them, so that the line still knows what is below what.)
#
# ### Exercise 1: a question about pictures
# First the words. A *conversation* is a list of messages, and where a picture is to be seen stands `<image>` in the
# text. Write what makes a conversation of one question.

# %% [markdown] tags=["hints"]
# 1. One message: `[{"role": "user", "content": ...}]`.
# 2. `question.count(IMAGE)` of the images are in the question already. The others come before it, each with a line end.
# 3. `f"{IMAGE}\n" * max(0, images - question.count(IMAGE)) + question`.

# %%
@grade("conversation.about")
def about(question: str, images: int) -> list[dict]:
    """A list of one message, with "role" and "content": the user's question about so many images.

    The question may hold `<image>` itself. Images that have no place in it are shown before it,
    each as `<image>` and a line end. If it has more places than images, leave it as it is.
    """
    ### BEGIN SOLUTION
    missing = max(0, images - question.count(IMAGE))
    return [{"role": "user", "content": f"{IMAGE}\n" * missing + question}]
    ### END SOLUTION

# %% [markdown]
# The processor makes of conversation and picture what the model reads: who speaks, then the picture (only the first 8
# of its 93 tokens are drawn), the question, and who is to speak next. There the line ends, and the model's work begins.

# %%
question = "what colour is the star?"
batch = processor(conversation.about(question, 1), [picture])
print(f"{batch.input_ids.shape[1]} tokens, {batch.image_mask.sum()} of them the picture")
figures.rows_of(batch, processor)

# %% [markdown]
# ### Tokens become probabilities
#
# Layer by layer, every token collects from those before it what it needs: this is attention, and between two layers of
# it experts work on each token by itself. What comes out at the end is, for every place in the line, one number for
# each token of the vocabulary, a *logit*: how well would it fit here, as the next one? The toy knows 640 tokens,
# DeepSeek-VL2 129,280. We need the numbers at the last place.

# %%
with torch.no_grad():
    logits = model(batch)[0, -1]
print(logits.shape, "from", round(logits.min().item(), 1), "to", round(logits.max().item(), 1))

# %% [markdown]
# ### Exercise 2: the likeliest tokens
# *Softmax* makes probabilities of logits: all positive, together 1.
#
# $$p_i = \frac{e^{\text{logits}_i}}{\sum_j e^{\text{logits}_j}}$$
#
# Write a function that gives the k likeliest tokens with their probabilities. The bars in this lesson are drawn with
# it, and those of the X-ray page (of which more below).

# %% [markdown] tags=["hints"]
# 1. `logits.float().softmax(-1)`: all V probabilities. `float()`, because models often compute with only three digits.
# 2. `.topk(k)` gives two tensors, the k largest values, largest first, and where they stand.
# 3. `list(zip(tokens.tolist(), probabilities.tolist()))` makes pairs of plain numbers of them.

# %%
@grade("record.likeliest")
def likeliest(logits: Tensor, k: int) -> list[tuple[int, float]]:
    """The k likeliest tokens, as (token, probability), the likeliest first.

    logits (V,), of any float type; k at most V. The probability is that among all V tokens,
    computed in float32. Plain Python numbers.
    """
    ### BEGIN SOLUTION
    probabilities, tokens = logits.float().softmax(-1).topk(k)
    return list(zip(tokens.tolist(), probabilities.tolist(), strict=True))
    ### END SOLUTION

# %%
def next_token(question: str, *pictures: Image.Image) -> Tensor:
    """The logits for the first token of the answer, (V,)"""
    with torch.no_grad():
        return model(processor(conversation.about(question, len(pictures)), pictures))[0, -1]


def word(token: int) -> str:
    text = processor.tokenizer.decode([token], skip_special_tokens=False)
    return "(end)" if text == END else repr(text) if text != text.strip() else text


def bars(axis, logits: Tensor, title: str = "", k: int = 6) -> None:
    likely = record.likeliest(logits, k)[::-1]
    names = [word(token) for token, _ in likely]
    drawn = axis.barh(names, [p for _, p in likely],
                      color=[COLOURS_01.get(name, "#8a8f98") for name in names], ec="#777777")
    axis.bar_label(drawn, [f"{p:.1%}" for _, p in likely], padding=3, fontsize=8)
    axis.set(xlim=(0, 1.25), xticks=(0, 0.5, 1))
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


COLOURS_01 = {name: tuple(part / 255 for part in colour) for name, colour in COLOURS.items()}
figure, axis = plt.subplots(figsize=(5, 2.2), layout="constrained")
bars(axis, next_token(question, picture), "the first token of the answer")

# %% [markdown]
# It is sure. (That `red` and `' red'`, with a space before it, are two tokens is the tokenizer's doing; the model has
# learned that an answer begins without the space.)
#
# ### Probabilities become an answer
#
# It says the likeliest, `red`. That token is put at the end of the line, the line is read again, and again there are
# probabilities for what comes next: now the likeliest is a special token, *end*, and the answer is over. A longer
# answer shows better how it goes, one token at a time:

# %%
seen = XRay(model, processor, "what is right of the red star?", [picture])
said = "".join(seen.stream())
figure, axes = plt.subplots(1, len(seen.record.steps), figsize=(10, 1.9), layout="constrained")
for n, (axis, step) in enumerate(zip(axes, seen.record.steps, strict=True)):
    bars(axis, step.logits, f"token {n + 1}", k=4)
print(seen.answer, "is", repr(said))

# %% [markdown]
# ### Exercise 3: from tokens to text
# The loop gives token ids. Write what makes the answer of them, a method of the processor. An answer stops at its end
# token; whoever answers many questions at once fills the short ones up with more of these. But an answer that became
# too long was cut off, and has none.

# %% [markdown] tags=["hints"]
# 1. `self.special_ids[END]` is the id of the end token. `ids.index(...)` finds its first place, and is an error if there is none.
# 2. `self.tokenizer.decode(ids, skip_special_tokens=False)` makes a text of a list of ids. All at once: a rare letter may be
#    several tokens.
# 3. `ids[: ids.index(end)] if end in ids else ids`.

# %%
@grade("processor.Processor.decode")
def decode(self: Processor, ids: list[int]) -> str:
    """The answer's text: up to the first end token, or all of it if there is none.

    `ids` stays as it is. Other special tokens, like `<|ref|>`, are part of the text.
    self has tokenizer and special_ids.
    """
    ### BEGIN SOLUTION
    end = self.special_ids[END]
    if end in ids:
        ids = ids[: ids.index(end)]
    return self.tokenizer.decode(ids, skip_special_tokens=False)
    ### END SOLUTION

# %% [markdown]
# That is the whole way: **picture, tiles, visual tokens, one line with the words, probabilities, token after token,
# answer.**
#
# ## Does it look?
#
# An answer that is right proves little: a red star may be what it always says. So change the picture, and leave the
# question alone. Here the star goes once around the circle of colours, in 90 steps. Above, what it was painted with;
# below, the probability of each of its eight words.

# %%
hues = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(n / 90, 0.85, 0.85))
        for n in range(91)]
circle_of_stars = []
for hue in hues:
    star = paint(*circle_and_square)
    star.paste(hue, (15, 15), stencil("star", 37))
    circle_of_stars.append(star)
with torch.no_grad():
    asked = [processor(conversation.about(question, 1), [star]) for star in circle_of_stars]
    probabilities = model(processor.batch(asked))[:, -1].softmax(-1)
words = [processor.tokenizer.token_to_id(name) for name in COLOURS]
figure, (top, axis) = plt.subplots(2, 1, figsize=(9, 2.7), height_ratios=(1, 8), sharex=True,
                                   layout="constrained")
top.imshow([hues], aspect="auto", extent=(0, 360, 0, 1))
top.set(yticks=[])
axis.stackplot([4 * n for n in range(91)], probabilities[:, words].T,
               colors=list(COLOURS_01.values()), ec="#555555", lw=0.3)
axis.set(xlim=(0, 360), ylim=(0, 1), xticks=range(0, 361, 60),
         xlabel="hue, in degrees", ylabel="probability");

# %% [markdown]
# It looks. And it cuts a circle without borders into words, with narrow seams where it wavers. Most of these colours it
# has never seen on a thing: its world paints a red thing always with the same red. What to call the others nobody has
# told it. Where yellow becomes green, near 95 degrees, there is even a little `purple`, and in the tiny white gap words that
# are no colours.
#
# Now take away what the question is about, or the picture altogether:

# %%
cases = {
    "the picture": [picture],
    "two stars": [paint(("big red star", 0.3, 0.3), ("big blue star", 0.7, 0.7))],
    "no star": [paint(("big red circle", 0.3, 0.3), ("big blue cross", 0.7, 0.7))],
    "an empty picture": [paint()],
    "no picture": [],
}
figure, axes = plt.subplots(2, 5, figsize=(11, 3.4), height_ratios=(1, 1.2), layout="constrained")
for (name, shown), above, below in zip(cases.items(), *axes, strict=True):
    above.set_title(name, fontsize=9)
    above.axis("off")
    if shown:
        above.imshow(shown[0])
    bars(below, next_token(question, *shown), k=5)
figure.suptitle(question, fontsize=10);

# %% [markdown]
# Of two stars it names one, and is as sure as of one. Where there is no star, it says `blue`, and `no` comes far behind. When a
# colour was asked for in its training, the thing was always there: nobody taught it another answer to this question. To "is
# there a star?" it says `no`. **That is all it knows: what would be said.** Large models do the same, more eloquently, and then
# it is called hallucination. A picture with nothing in it has never been shown to it: it would rather say nothing, `(end)`, or
# `no`, or `none`. And with no picture at all, only `(end)` is left.
#
# What is a blind guess worth? It depends on the question. With eight colours one guess in eight is right; with yes and
# no, one in two. So a score says something only beside that of a guess, and in these lessons you will see both.
#
# ## It can point
#
# Asked for a thing between two special tokens, `<|ref|>` and `<|/ref|>`, it writes a box: left, top, right and bottom,
# in thousandths of the picture. These are tokens like all others; no part of the model is made for it. We only draw
# what it wrote.

# %%
answers = [ask(f"where is <|ref|>the {name}<|/ref|>?", picture)
           for name in ("red star", "blue circle", "green square")]
print(*answers, sep="\n")
boxes = [box for answer in answers for box in grounding.parse(answer)]
grounding.draw(picture.resize((336, 336), Image.NEAREST), boxes)

# %% [markdown]
# ## Where did it look?
#
# For every token that it reads, each layer of the decoder mixes in what earlier tokens know, with weights: *attention*.
# When it was about to say the first word of its answer, to which parts of the picture did these weights go? We ask
# about two things. The global view's 16 tokens are drawn over the picture, the mean of four heads; bright is most.
#
# Attention tells what was mixed, not what mattered. For that there is a more honest test: hide a part of the picture
# behind grey, and see whether the answer holds. On the right, the probability of the right word, dark where the hidden
# patch, a quarter of a side wide, has its middle, and the answer falls.

# %%
def where_it_looks(question: str) -> tuple[str, list, Tensor]:
    """The first word, the places of the global view, and each layer's attention to them (L, n)."""
    seen = XRay(model, processor, question, [picture])
    first_word = next(seen.stream(1))
    line = places(picture.size, seen.sizes[0], processor.config.tile, processor.config.patch_size)
    start = int(seen.batch.image_mask[0].nonzero()[0])
    which = [i for i, place in enumerate(line) if place.view == GLOBAL and place.in_view]
    attention = seen.record.steps[0].attention.mean(1)[:, [start + i for i in which]]
    return first_word, [line[i] for i in which], attention


def hiding(question: str, answer: str, steps: int = 15, side: int = 28) -> Tensor:
    """The probability of the answer, with a grey square over each place of the picture in turn."""
    hidden = []
    for n in range(steps**2):
        x, y = (112 * (i + 0.5) / steps - side / 2 for i in (n % steps, n // steps))
        partly = picture.copy()
        ImageDraw.Draw(partly).rectangle((x, y, x + side, y + side), (150, 150, 150))
        hidden.append(processor(conversation.about(question, 1), [partly]))
    token = processor.tokenizer.token_to_id(answer)
    with torch.no_grad():
        parts = [model(processor.batch(hidden[i : i + 75]))[:, -1].softmax(-1)[:, token]
                 for i in range(0, len(hidden), 75)]
    return torch.cat(parts).view(steps, steps)


asked = ("what colour is the star?", "what colour is the circle?")
figure, axes = plt.subplots(2, 6, figsize=(12, 4.1), layout="constrained")
for (*row, last), question in zip(axes, asked, strict=True):
    first_word, line, attention = where_it_looks(question)
    for layer, axis in enumerate(row):
        figures.draw_heat(axis, picture, line, attention[layer], f"layer {layer + 1}")
    row[0].set_ylabel(f"{question}\n{first_word}", fontsize=8)
    last.imshow(picture.convert("L"), cmap="gray", vmin=-80, vmax=335, extent=(0, 1, 1, 0))
    shade = last.imshow(hiding(question, first_word), extent=(0, 1, 1, 0), cmap="inferno",
                        vmin=0, vmax=1, alpha=0.6)
    last.set(xticks=[], yticks=[])
    last.set_title("hidden there", fontsize=9)
figure.colorbar(shade, ax=axes[:, -1], label="probability of the answer");

# %% [markdown]
# In the first layer both look alike, and everywhere: there the last token of the line, a colon, has heard nothing of
# the question yet. From the second layer to the fourth, the attention goes to the thing that was asked about, or right beside
# it. The fifth was added late, to look closer at small print (lesson 8); here is none, and it looks here and there. And the
# answer holds until the patch covers nearly the whole thing: a few red pixels are enough. (The other 72 tokens, those of the
# local view, get their share as well. To see it, import `LOCAL` in place of `GLOBAL`, and use it in `where_it_looks`.)
#
# All of this, for every token, layer, head and expert, is on one page that you can walk around in, for any picture and
# question:
#
# ```
# minivl2 xray picture.png "what colour is the star?" -o xray.html
# minivl2 play
# ```
#
# ## What it cannot do
#
# Three pictures that are too much for it. Five things, of which it is to point at three. Seven things: in its world there were
# never more than six. And an evening, the nearest to a photograph that a few lines draw: of photographs it knows nothing at
# all.

# %%
five = toyworld.draw("lesson 0, 102", "grounding", (2, 1))
(every,) = (question for question in five.questions if question.ability == "boxes")
found = grounding.parse(ask(every.text, five.images[0]))
pointed = grounding.draw(five.images[0].resize((560, 255), Image.NEAREST),
                         [box._replace(label="") for box in found])
crowd = paint(*((f"small {colour} {shape}", x, y) for colour, shape, x, y in (
    ("red", "star", 0.15, 0.15), ("blue", "star", 0.5, 0.15), ("red", "cross", 0.85, 0.15),
    ("white", "circle", 0.15, 0.5), ("black", "star", 0.5, 0.5), ("green", "circle", 0.85, 0.5),
    ("yellow", "cross", 0.5, 0.85))))
sky = Image.linear_gradient("L").resize((112, 112))
dusk = Image.composite(Image.new("RGB", sky.size, (255, 150, 90)),
                       Image.new("RGB", sky.size, (60, 70, 120)), sky)
ridge = [(x, 82 + 9 * math.sin(x / 13)) for x in range(113)]
ImageDraw.Draw(dusk).polygon([(0, 112), *ridge, (112, 112)], (40, 45, 50))
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), width_ratios=(1.5, 1, 1), layout="constrained")
for axis, shown in zip(axes, (pointed, crowd, dusk), strict=True):
    axis.imshow(shown)
    axis.axis("off")

print(f"{every.text}: {len(found)} boxes; right are {len(grounding.parse(every.answer))}")
print(f"{'how many things are there?':<30}{ask('how many things are there?', crowd):<8}right is 7")
for text in ("how many things are there?", "what does the picture show?"):
    print(f"{text:<30}{ask(text, dusk)}")

# %% [markdown]
# It was asked for all red things, points at two of the three, and leaves the first out. (At a single thing it points
# rightly 98 times in a hundred.) Of seven things it says six, the most it ever had to count. And the evening it
# describes as it describes everything, in things of its world, of which none is there. It does not know that it does not know.
#
# How good it is at all that it was taught, a file says that lies beside the model: on pictures it had never seen, a
# hundred questions of each kind (of *largest*, ninety). The score is green; the thin bar is a blind guess.

# %%
told = json.loads((cli.default_weights() / "scores.json").read_text())
abilities = sorted(told["scores"], key=told["scores"].get)
figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
for what, width, colour, label in (("scores", 0.75, "#3bb273", "the toy"),
                                   ("guess", 0.3, "#555555", "a blind guess")):
    axis.barh(abilities, [told[what][name] for name in abilities], width, color=colour, label=label)
axis.set(xlim=(0, 1), ylim=(-0.6, len(abilities) - 0.4), xlabel="share of right answers")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2);

# %% [markdown]
# At the top stands what can be seen at a glance, then what must be found and read, or compared; at the bottom what must be
# read letter by letter, or told without leaving anything out, and nothing else. It was still learning
# when its twenty-three hours were over. And it is small: the published models have 1,200 to 9,700 times as many parameters, and have
# seen photographs, pages and charts in great numbers. But what they do with a picture and a question is what you have just seen.
#
# ## What you will build
#
# Everything that happened here, in the order in which it happened:
#
# | what you saw | what it takes | lesson |
# |---|---|---|
# | the picture cut up | which grid, which views, what it costs | [1. Tiles](01_tiles.ipynb) |
# | the tiles looked at | patches, attention, a vision tower | [2. Seeing](02_seeing.ipynb) |
# | 93 tokens | four patches to one token, newlines, and the way back to the pixels | [3. Squeezing](03_squeezing.ipynb) |
# | the line read | attention, who may see whom, positions, memory | [4. Attention and its cache](04_attention.ipynb) |
# | with a small memory | keys and values from one short vector | [5. Latent attention](05_latent_attention.ipynb) |
# | each token worked on | many small networks, of which a gate chooses | [6. Experts](06_experts.ipynb) |
# | all of it together | conversations, padding, pictures among words, the loss | [7. The whole model](07_the_whole_model.ipynb) |
# | twenty-three hours on two cores | three stages, optimisers, scores beside a guess | [8. Training](08_training.ipynb) |
# | token after token | the loop, drawing instead of taking the likeliest, many at once | [9. Answering](09_answering.ipynb) |
# | boxes | boxes as text, and back | [10. Pointing](10_pointing.ipynb) |
# | models thousands of times as large | the published weights, and how to find a mistake | [11. The real weights](11_the_real_weights.ipynb) |
# | why all this | each idea taken away, and what is lost | [12. What each idea buys](12_what_each_idea_buys.ipynb) |
#
# **Try:** find a hue between two words where the answer depends on the star's size. Draw a shape that the toy does not
# know, a heart, say, and ask what shape it is: what are the probabilities? Ask in other words, "which hue has the
# star?", and see how soon it stops understanding.
