# %% [markdown]
# # 9. Answering
#
# *40 minutes. Modules: `minivl2/generation.py`, `minivl2/decoder.py`. You need: what a decoder and its cache are
# (lesson 4).*
#
# A trained model does one thing: for a line of tokens, it says how likely each token is to be the next. An answer is
# what you make of that: choose one, put it at the end of the line, ask again. This lesson is about that loop, about
# choosing, and about what it all costs.
#
# **In the paper:** nothing; what an answer needs is assumed to be known. Drawing among the likeliest tokens is from
# [Holtzman and others](https://arxiv.org/abs/1904.09751), section 3.1, the penalty on repetition from
# [CTRL](https://arxiv.org/abs/1909.05858), section 4.1.
#
# **At the end you will have written** the loop that answers a batch with a cache, the choice of the next token, the
# penalty, and the positions that let conversations of different lengths be answered together; and you will have
# measured each.

# %%
import copy
import dataclasses
import random
import re
import time
from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from minivl2 import Batch, Config, DeepSeekVL2, Processor, figures, generate, stream, toyworld
from minivl2.cache import Cache
from minivl2.decoder import check_length
from minivl2.grading import grade
from minivl2.processor import ProcessorConfig
from minivl2.training.tokenizer import train_tokenizer

torch.manual_seed(0)
torch.set_num_threads(1)        # tensors this small lose by sharing their work
figures.where("answer")

# %% [markdown]
# ## Something to listen to
#
# We need a model that has something to say, and a minute is enough for very little: captions from the toy world,
# without their pictures, letter by letter (each letter is one token). It learns what captions *sound* like. There is a
# rule by which we can judge it: a caption is a list of a size, a colour and a shape each, and nothing else.

# %%
captions = [question.answer for n in range(1000)
            for question in toyworld.draw(f"captions, {n}", "scenes", (1, 1)).questions
            if question.ability == "caption" and question.answer.count(",") < 3]
tokenizer = train_tokenizer([], 267)        # 256 bytes and 11 special tokens: no words
toy = Config.named("toy")
language = dataclasses.replace(toy.language, vocab_size=267, hidden_size=64, intermediate_size=128,
                               num_hidden_layers=2, n_routed_experts=None, kv_lora_rank=32)
config = dataclasses.replace(toy, language=language,
                             projector=dataclasses.replace(toy.projector, n_embed=64))
processor = Processor(tokenizer, ProcessorConfig.of(config))
questions = [[{"role": "user", "content": text}]
             for text in ("describe", "describe, please", "what is there to be seen?")]
print("It will learn from captions like these:", *captions[:3], sep="\n    ")

# %%
def train(steps: int = 200, early: int = 15) -> tuple[DeepSeekVL2, DeepSeekVL2]:
    """Returns the model after a few steps, and after all."""
    model, draw = DeepSeekVL2(config), random.Random(0)
    talks = [[*questions[n % 3], {"role": "assistant", "content": caption}]
             for n, caption in enumerate(captions)]
    examples = [processor(talk, training=True) for talk in talks]
    optimizer = torch.optim.AdamW(model.decoder.parameters(), weight_decay=0)
    for step in range(steps):
        if step == early:
            young = copy.deepcopy(model)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 20) * (1 - step / steps)
        loss = model.loss(processor.batch(draw.sample(examples, 16))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return young.eval(), model.eval()


young, model = train()

# %% [markdown]
# ## One token after another
#
# The loop in its plainest form, for one question: read everything, take the likeliest next token, put it at the end,
# read everything again.

# %%
@torch.no_grad()
def plainly(model: DeepSeekVL2, batch: Batch, tokens: int) -> list[int]:
    x, answer = model.embed(batch), []
    while len(answer) < tokens and model.config.language.eos_token_id not in answer:
        hidden, _ = model.decoder(x, torch.ones(x.shape[:2], dtype=torch.bool))
        answer.append(model.decoder.head(hidden[0, -1]).argmax().item())
        x = torch.cat((x, model.decoder.embed(torch.tensor([answer[-1:]]))), dim=1)
    return answer


question = processor(questions[0])
print(processor.decode(plainly(model, question, 100)))

# %% [markdown]
# ### Exercise 1: the loop
# Now with a cache, so that each token is read once, and for a batch of questions. What is new:
#
# - The prompt is read first, all at once or, if `prefill_chunk` says so, that many tokens at a time. All chunks go to
#   the same cache. (Pictures are in the prompt: `model.embed` puts them there.)
# - Rows end at different times. One that has ended says the end token for as long as others go on.
# - It is a generator: it *yields* each token as soon as it is chosen, and whoever listens can show it at once.
# - It does not choose. That is the job of `choose`, which is given the logits and the answer so far.

# %% [markdown] tags=["hints"]
# 1. Before the loop: check the length, make the cache (room for the prompt and the answer, but never more than the
#    context), read the prompt. `torch.arange(T).split(n)` gives chunks of indices;
#    `decoder(x[:, chunk], batch.attention_mask[:, chunk], cache)` reads one. Only the last chunk's output is needed,
#    and of it only the last token's.
# 2. In the loop: logits, `choose`, `.masked_fill(ended, END)`, `yield`. Then note which rows have ended now, lengthen
#    the answer, and return if all have ended, the answer is long enough, or the cache is full
#    (`cache.length == capacity`).
# 3. Last in the loop: read the new tokens, `decoder(decoder.embed(token[:, None]), real, cache)`, where real is (B, 1)
#    and all True, for ended rows too.

# %%
@grade("generation.one_by_one")
@torch.no_grad()
def one_by_one(model: DeepSeekVL2, batch: Batch, max_new_tokens: int,
               choose: Callable[[Tensor, Tensor], Tensor],
               prefill_chunk: int | None = None) -> Iterator[Tensor]:
    """Yields the next token of every row, (B,), the end token included, until all rows have ended,
    or there are max_new_tokens of them, or the context is full.

    model.embed(batch) (B, T, D) is the prompt; batch.attention_mask (B, T) bool, False is padding.
    model.decoder(x, real, cache) reads what follows on the cache and returns (B, ., D) and the
    routing; model.decoder.head(hidden (B, D)) (B, V) are the logits; model.decoder.embed(ids) makes
    vectors of tokens. Before the images are looked at: check_length(T, the context).
    choose(logits (B, V) in float32, answer (B, n) so far) -> tokens (B,).
    prefill_chunk: read the prompt so many tokens at a time; None: all at once.
    From model.config.language: eos_token_id, max_position_embeddings (the context),
    num_hidden_layers (for Cache(layers, capacity)). A row that has ended is filled up with the
    end token.
    """
    ### BEGIN SOLUTION
    decoder, lang = model.decoder, model.config.language
    B, T = batch.input_ids.shape
    check_length(T, lang.max_position_embeddings)
    capacity = min(T + max_new_tokens, lang.max_position_embeddings)
    cache = Cache(lang.num_hidden_layers, capacity)

    x = model.embed(batch)
    for chunk in torch.arange(T).split(prefill_chunk or T):
        hidden, _ = decoder(x[:, chunk], batch.attention_mask[:, chunk], cache)

    answer = batch.input_ids.new_empty(B, 0)
    ended = torch.zeros(B, dtype=torch.bool)
    while True:
        logits = decoder.head(hidden[:, -1]).float()
        token = choose(logits, answer).masked_fill(ended, lang.eos_token_id)
        yield token
        ended = ended | (token == lang.eos_token_id)
        answer = torch.cat((answer, token[:, None]), dim=1)
        if ended.all() or answer.shape[1] == max_new_tokens or cache.length == capacity:
            return
        hidden, _ = decoder(decoder.embed(token[:, None]), torch.ones_like(ended)[:, None], cache)
    ### END SOLUTION

# %%
answers = generate(model, question, 100)
assert answers[0].tolist() == plainly(model, question, 100)
print("With a cache, the same:", processor.decode(answers[0].tolist()))

# %% [markdown]
# ## Choosing
#
# The likeliest token, again and again, is called greedy. For "how many?" and "where?" it is right: there is one answer,
# and the model's best guess at it is wanted. But it gives the same caption for ever, and the likeliest *next letter*
# need not lead to a likely *text*.
#
# The other extreme is to take the model at its word and draw: if it gives a letter 10 %, take it in one case of ten.
# Between and beyond the two there is the **temperature** $\tau$: draw from $\mathrm{softmax}(\text{logits} / \tau)$.
# Below 1 the likely becomes likelier still, above 1 all become more alike. Here is what our model thinks of the letter
# after `big` and a space:

# %%
@torch.no_grad()
def after(text: str) -> Tensor:
    """The model's logits for the letter after this beginning of an answer: (V,)"""
    ids = torch.cat((question.input_ids, torch.tensor([tokenizer.encode(text).ids])), dim=1)
    hidden, _ = model.decoder(model.decoder.embed(ids), torch.ones_like(ids, dtype=torch.bool))
    return model.decoder.head(hidden[0, -1])


logits = after("big ")
letters = logits.topk(10).indices
names = [tokenizer.decode([i]) for i in letters.tolist()]
figure, axes = plt.subplots(1, 4, figsize=(10, 2.1), layout="constrained", sharey=True)
for axis, temperature in zip(axes, (0.5, 1.0, 2.0, 4.0), strict=True):
    probabilities = (logits / temperature).softmax(-1)
    axis.bar(range(10), probabilities[letters], color="#3bb273")
    rest = 1 - probabilities[letters].sum().item()
    axis.bar(10, rest, color="#c0c0c0")
    axis.set(xticks=range(11), xticklabels=[*names, "*"])
    axis.set_title(f"temperature {temperature}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("probability");

# %% [markdown]
# The star is all the other tokens together, 257 of them. At temperature 1 it is hardly to be seen: each of these is
# unlikely. But there are many of them. At temperature 2 about one draw in four is one of them, and at 4 three in
# four. In a real vocabulary there are not 267 tokens but 129,280.
#
# So one cuts the tail off. **Top-p**, or nucleus, sampling: line the tokens up from the likeliest down, keep as many as
# are needed to have the probability $p$ together, and draw among those only, in their proportions. Where the model is
# sure, one or two stay; where it is not, many do.
#
# ### Exercise 2: draw
# First the temperature, then the nucleus, then the draw. Temperature 0 cannot be divided by; it is greedy.

# %% [markdown] tags=["hints"]
# 1. Sort the probabilities: `likely, token = probabilities.sort(-1, descending=True)`. `token` remembers whose they
#    are.
# 2. A token stays if those *before* it do not reach top_p yet: `likely.cumsum(-1) - likely < top_p`. For the likeliest
#    that is 0, so one always stays. Set the others to 0.
# 3. `.multinomial(1, generator=random)` draws a *place* in the sorted line, (B, 1), and need not be given a sum of 1.
#    Which token stands there, `token.gather(1, ...)` says.

# %%
@grade("generation.sample")
def sample(logits: Tensor, temperature: float, top_p: float, random: torch.Generator) -> Tensor:
    """One token of each row, (B,).

    logits (B, V). temperature 0: the likeliest; else draw from softmax(logits / temperature),
    among the fewest likeliest tokens that together have the probability top_p or more.
    random: where all chance comes from; the global generator is left alone.
    """
    ### BEGIN SOLUTION
    if temperature == 0:
        return logits.argmax(-1)
    likely, token = (logits / temperature).softmax(-1).sort(-1, descending=True)
    before = likely.cumsum(-1) - likely         # probability of all that are likelier
    drawn = likely.masked_fill(before >= top_p, 0).multinomial(1, generator=random)
    return token.gather(1, drawn)[:, 0]
    ### END SOLUTION

# %% [markdown]
# What it does to captions. Sixty-four at a time, drawn with more and more temperature: how many are captions at all, by
# the rule from above, and how many different beginnings do they have? (The first item of a caption can be one of 96.)

# %%
ITEM = re.compile("(big|small) (black|blue|green|orange|purple|red|white|yellow) "
                  "(circle|cross|diamond|square|star|triangle)")


def is_caption(text: str) -> bool:
    return all(ITEM.fullmatch(item) for item in text.split(", "))


def listen(model: DeepSeekVL2, n: int = 64, **options) -> list[str]:
    ids = generate(model, processor.batch([question] * n), 90, **options)
    return [processor.decode(row) for row in ids.tolist()]


temperatures = (0, 0.25, 0.5, 1, 1.25, 1.5, 2)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
for top_p, colour in ((1.0, "#d62246"), (0.9, "#3bb273")):
    heard = [listen(model, temperature=t, top_p=top_p, seed=0) for t in temperatures]
    good = [[text for text in texts if is_caption(text)] for texts in heard]
    left.plot(temperatures, [len(texts) / 64 for texts in good], ".-", color=colour)
    beginnings = [len({text.split(",")[0] for text in texts}) for texts in good]
    right.plot(temperatures, beginnings, ".-", color=colour, label=f"top-p {top_p}")
    print(f"top-p {top_p}, temperature 1.5:", *heard[5][:2], sep="\n    ")
left.set(xlabel="temperature", ylabel="share of captions", ylim=(0, 1.05))
right.set(xlabel="temperature", ylabel="different first items", ylim=0)
right.legend(frameon=False, fontsize=8)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Greedy says one thing, and says it well. With temperature comes variety, and then nonsense; top-p lets one have the
# first without the second for longer, until at temperature 2 the tail is so fat that it reaches into the nucleus. For
# questions about a picture, which have one answer, there is nothing to be gained by drawing: temperature 0 is minivl2's
# default.
#
# ## Going round in circles
#
# A model that always takes the likeliest token can fall into a loop: what it has just said makes the same likely again.
# A young one does so at once. Ours after 15 steps of training, greedily:

# %%
for penalty in (1.0, 1.2, 1.5):
    print(f"penalty {penalty}:  {listen(young, n=1, repetition_penalty=penalty)[0][:70]!r}")

# %% [markdown]
# The **repetition penalty** of CTRL makes tokens less likely that are in the answer already. A logit above 0 is divided
# by it; but one below 0 would be *raised* by a division, so it is multiplied. It drives our model on to new letters,
# for as long as there are any: when all it knows have been said, all are punished, and the loop is back.
#
# ### Exercise 3: the penalty
# Only the answer counts, not the question: asked "is it red?", the model may well say red. Once is once, however often
# a token has been said.

# %% [markdown] tags=["hints"]
# 1. `told = logits.gather(1, answer)`: the logits of what each row has said, (B, n).
# 2. `torch.where(told < 0, told * penalty, told / penalty)` is what they become.
# 3. `logits.scatter(1, answer, ...)` puts them back, in a copy. A token that was said twice is written twice, with the
#    same number: that is why it counts once.

# %%
@grade("generation.penalise")
def penalise(logits: Tensor, answer: Tensor, penalty: float) -> Tensor:
    """(B, V): in each row, logits of tokens it has said are divided by penalty if above 0, and
    multiplied by it if below. The others, and `logits` itself, are unchanged.

    logits (B, V), answer (B, n) token ids so far; n may be 0, and a token may occur twice.
    """
    ### BEGIN SOLUTION
    told = logits.gather(1, answer)
    return logits.scatter(1, answer, torch.where(told < 0, told * penalty, told / penalty))
    ### END SOLUTION

# %% [markdown]
# It is a crude tool. A text must repeat itself: it has only so many letters, commas, and the word "the". Our trained
# model at temperature 1, with more and more of it:

# %%
penalties = (1.0, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0)
heard = [listen(model, temperature=1.0, seed=0, repetition_penalty=p) for p in penalties]
figure, axis = plt.subplots(figsize=(8, 1.9), layout="constrained")
axis.plot(penalties, [sum(map(is_caption, texts)) / 64 for texts in heard], ".-", color="#3bb273")
axis.set(xlabel="repetition penalty", ylabel="share of captions", ylim=(0, 1.05))
axis.spines[["top", "right"]].set_visible(False)
print("penalty 2:", heard[-1][0])

# %% [markdown]
# Where a model writes boxes, `[[85, 285, 207, 632], ...`, a penalty means that a digit used up is a digit avoided. That
# is why minivl2 has 1 for its default.
#
# ## Many at once
#
# A processor that fetches all weights of a layer for the sake of one token has time left: with the same weights it
# could serve other conversations. Their lengths differ, though, so the shorter ones are padded, and on the **left**:
# all answers then begin at the same place, the right end. That the padding is not looked at, the mask of lesson 4 sees
# to. But a sentence must also not be *moved* by it.
#
# ### Exercise 4: positions
# The position of a token is the number of real tokens before it in its row. Padding stands anywhere; say 0.

# %% [markdown] tags=["hints"]
# 1. `real.cumsum(1)` counts the real tokens up to and including each.
# 2. Minus 1 makes the first real one 0. Padding on the left would get -1: clamp.

# %%
@grade("decoder.positions")
def positions(real: Tensor) -> Tensor:
    """(B, S) whole numbers: how many real tokens stand before each. 0 for padding on the left.

    real (B, S) bool: False is padding.
    """
    ### BEGIN SOLUTION
    return (real.cumsum(1) - 1).clamp(min=0)
    ### END SOLUTION

# %% [markdown]
# Three questions of different lengths, together and each alone. The answers must not differ. (Rotary embedding needs
# only that *distances* are right, and those a shift of the whole row leaves alone. But a context has an end, and
# padding should not use it up.)

# %%
asked = [processor(messages) for messages in questions]
together = processor.batch(asked)
for row, alone in zip(generate(model, together, 60).tolist(), asked, strict=True):
    assert processor.decode(row) == processor.decode(generate(model, alone, 60)[0].tolist())
    print(f"{alone.input_ids.shape[1]} tokens:", processor.decode(row))
print(f"of the batch, {1 - together.attention_mask.float().mean():.0%} is padding")


def seconds(batch: Batch, tokens: int, chunk: int | None = None) -> float:
    """Processor time, the best of three. Always the same letter, so that no answer ends early."""
    took, always_a = [], torch.full((len(batch),), tokenizer.token_to_id("a"))
    for _ in range(3):
        start = time.process_time()
        list(one_by_one(model, batch, tokens, lambda logits, answer: always_a, chunk))
        took.append(time.process_time() - start)
    return min(took)


sizes = (1, 2, 4, 8, 16, 32)
each = [1000 * seconds(processor.batch([question] * B), 20) / 20 for B in sizes]
figure, axis = plt.subplots(figsize=(8, 2.1), layout="constrained")
axis.plot(sizes, each, ".-", color="#8a8f98", label="a step, for all")
per_token = [ms / B for ms, B in zip(each, sizes, strict=True)]
axis.plot(sizes, per_token, ".-", color="#3bb273", label="a token")
axis.set(xlabel="conversations in the batch", ylabel="milliseconds", ylim=0, xticks=sizes)
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8);

# %% [markdown]
# The price of a batch: it goes on until its longest answer has ended, and padding is computed with.
#
# ## Reading in pieces
#
# A picture at full size is 2101 tokens, and while a prompt is read all of them are in every layer at once.
# `prefill_chunk` reads some at a time: the numbers in between are fewer, the result is the same. Here a prompt of 900
# tokens; the largest tensor that came up anywhere, and the time it took.

# %%
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.bytes = max(self.bytes, made.nbytes)
        return made


long = processor([{"role": "user", "content": "describe " * 100}])
chunks, largest, took = (1000, 500, 250, 100, 50, 20), [], []
for chunk in chunks:
    took.append(1000 * seconds(long, 1, chunk))
    with Largest() as mode:
        list(one_by_one(model, long, 1, lambda logits, answer: logits.argmax(-1), chunk))
    largest.append(mode.bytes / 1e3)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.1), layout="constrained")
for axis, values, label in zip(axes, (largest, took), ("kilobytes, largest tensor", "milliseconds"),
                               strict=True):
    axis.bar(range(6), values, color="#3bb273")
    axis.set(xticks=range(6), xticklabels=["all", *chunks[1:]], xlabel="tokens at a time",
             ylabel=label)
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# In one piece the largest tensor is the mask, 900 x 900: `attend` never writes its scores down. In pieces our latent
# attention absorbs (lesson 5) wherever that is fewer multiplications, and *its* scores are written down, for all four heads:
# so two large pieces need more memory than one, and more time. From there on memory falls with the piece. Time rises once
# more at the end, where ever smaller pieces each read all that is remembered. (At the published sizes absorbing only pays
# for the smallest pieces, so there large ones are the plain sum.)
#
# ## Letter by letter
#
# Because the loop is a generator, streaming costs nothing: whoever listens gets each token when it is there. There is
# one catch. Tokens are pieces of *bytes*, and a letter outside of English may be several bytes: half of it is no text
# at all.

# %%
fox = tokenizer.encode("a 狐!").ids
print("each token by itself:", [tokenizer.decode([i]) for i in fox])
text = DecodeStream(skip_special_tokens=False)
print("as a stream:         ", [text.step(tokenizer, i) for i in fox])
print("|".join(stream(model, processor, questions[0], temperature=0.7, seed=3)))

# %% [markdown]
# `DecodeStream` holds half letters back until the other half comes.
#
# ## What you have now
# `minivl2/generation.py`, of which you have written the loop, the draw and the penalty, and one more function of
# `minivl2/decoder.py`. What is left of that file is the sum of its layers: twenty lines, to be read now, with `visible`
# from lesson 4.
#
# **Try:** let `listen(model, temperature=1.0, top_p=0.5)` speak: how many different first items are left? Then train a
# second model with another seed, and let each speak at the temperature at which the other is best.
