# %% [markdown]
# # 12. What each idea buys
#
# *40 minutes. Modules: `minivl2/training/`, of it `ablations.py`, `report.py`, and the last parts of `evaluation.py` and
# `loop.py`. You need: latent attention (lesson 5), experts (lesson 6), training (lesson 8).*
#
# You have written every part of DeepSeek-VL2. Is each of them worth its place? There is one way to find out: take it
# out, train again, and look what is missing. That is called an *ablation*. It sounds easy, and most of this lesson is
# about the ways in which it goes wrong.
#
# **In the paper:** DeepSeek-VL2 takes its decoder's ideas ready-made. They are compared where they were introduced:
# latent attention in [DeepSeek-V2](https://arxiv.org/abs/2405.04434) (appendix D.2), shared experts in
# [DeepSeekMoE](https://arxiv.org/abs/2401.06066) (sections 4.4 and 4.5), the correction bias in
# [loss-free balancing](https://arxiv.org/abs/2408.15664) (section 4.2). The tiles are in section 2 of DeepSeek-VL2.
#
# **At the end you will have written** how a variant is made from the toy, how uneven the experts' work is, how a curve
# is smoothed, and how sure a score is; you will have run an ablation in miniature, and read four larger ones.

# %%
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import minivl2
from minivl2 import Config, Processor, cost, figures
from minivl2.experts import Routing
from minivl2.grading import grade
from minivl2.processor import ProcessorConfig
from minivl2.training import ablations, curriculum, evaluation, loop, report
from minivl2.training.tokenizer import sentences, train_tokenizer
from minivl2.visual_tokens import count

torch.manual_seed(0)
torch.set_num_threads(1)
figures.where("tiles", "attention", "experts")

# %% [markdown]
# ## An idea is a change
#
# A part that can be taken out must be a *setting*. In minivl2 all settings are in the configuration (lesson 7), so an
# ablation is a question, and a few changes of the toy's configuration:

# %%
for name, ablation in ablations.ABLATIONS.items():
    print(f"{name}: {ablation.question}")
    for variant, changes in ablation.variants.items():
        print(f"    {variant:<24}{dict(changes) or 'the toy as it is'}")

# %% [markdown]
# ### Exercise 1: a variant
# Configurations are frozen dataclasses inside frozen dataclasses. `{"language": {"use_mla": False}}` means: the same
# configuration, with the same decoder, but for one field. Everything else must stay, and the original too: the next
# variant begins from it.

# %% [markdown] tags=["hints"]
# 1. `dataclasses.replace(config, name=value)` makes a copy with one field changed. With a dictionary:
#    `dataclasses.replace(config, **{"name": value})`. It complains about names that do not exist, and that is wanted.
# 2. Where a value is a `Mapping`, the new value is the old part, changed: this very function, called on
#    `getattr(config, name)`.

# %%
@grade("training.ablations.changed")
def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of `config`, a (frozen) dataclass, with other values for the fields in `changes`.

    A value that is a Mapping does not replace the field, which is a dataclass, too: it changes
    fields of it, in the same way, to any depth. Whatever is not named stays as it is
    in `config`. `config` and `changes` themselves are left alone. A name that is no field is an
    error: TypeError or AttributeError, as dataclasses.replace and getattr raise.
    """
    ### BEGIN SOLUTION
    new = {}
    for name, value in changes.items():
        is_part = isinstance(value, Mapping)
        new[name] = changed(getattr(config, name), value) if is_part else value
    return dataclasses.replace(config, **new)
    ### END SOLUTION

# %%
toy = Config.named("toy")
multi_head = ablations.changed(toy, {"language": {"use_mla": False}})
print("the variant:", multi_head.language.use_mla, " the toy:", toy.language.use_mla)

# %% [markdown]
# ## What is a fair comparison?
#
# **One change.** Look at the list above again. Is everything there one change? "Correction bias" changes four settings:
# the balance loss goes, the bias comes, and with it the scores become a sigmoid and the weights are normalised, because
# that is how the base model uses it. If it does better, we do not know which of the four did it. It is a comparison of
# two recipes.
#
# **The same size.** Who takes the shared expert out and leaves the rest makes the model smaller, and finds that smaller
# models are worse. So the variant without it sends every token to three experts instead of two: it holds one expert less
# a layer, and uses as many. What a variant costs is known before it is trained:

# %%
names = [f"{name}: {variant}" for name, ablation in ablations.ABLATIONS.items()
         for variant in ablation.variants]
facts = {"parameters, thousands": [], "of them used for a token": [],
         "cached numbers\na token and layer": [], "visual tokens of\n2 x 2 tiles": []}
for name in names:
    config, seeing = ablations.configurations(name)
    parts = cost.parts(config)
    tiles = (1, 1) if len(config.candidate_resolutions) == 1 else (2, 2)
    numbers = (sum(part.total for part in parts) / 1000,
               sum(part.activated for part in parts) / 1000,
               cost.cache_numbers(config.language), count(tiles, config.tokens_per_side))
    for fact, number in zip(facts.values(), numbers, strict=True):
        fact.append(number)
figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained", sharey=True)
of = [name.partition(":")[0] for name in names]
shades = [figures.LOCAL if list(ablations.ABLATIONS).index(name) % 2 else "#b99aec" for name in of]
for axis, (fact, numbers) in zip(axes, facts.items(), strict=True):
    bars = axis.barh(names, numbers, color=shades)
    axis.bar_label(bars, [f"{number:,.0f}" for number in numbers], fontsize=8, padding=2)
    axis.set_title(fact, fontsize=9)
    axis.set(xticks=[], xlim=(0, 1.3 * max(numbers)))
    axis.tick_params(labelsize=8, length=0)
    axis.spines[:].set_visible(False)
axes[0].invert_yaxis()

# %% [markdown]
# Where sizes are not equal one must say so. Those of the attentions differ a little: the latent one has matrices that
# pack and unpack, and a key of its own for the position. With the tiles the size is the same and the work is not: without
# them a picture is far fewer tokens, each step is cheaper, and in the same *time* the variant could have taken more of
# them. The same steps, the same time, the same number of tokens: no comparison has all three. Ours takes the same steps.
#
# **The same chance.** The seed decides which pictures are drawn, and the first weights. The pictures are the same for all
# variants (they are fixed by seed and step, lesson 8). The weights?

# %%
def first_weights(variant: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return minivl2.build(ablations.configurations(variant)[0]).state_dict()


base = first_weights("")
for name in ablations.ABLATIONS:
    for variant in list(ablations.ABLATIONS[name].variants)[1:]:
        other = first_weights(f"{name}: {variant}")
        both = [key for key in base if key in other and base[key].shape == other[key].shape]
        same = sum(torch.equal(base[key], other[key]) for key in both)
        print(f"{name:<8}{variant:<24}{same} of {len(both)} tensors of the same shape begin alike")

# %% [markdown]
# Weights are drawn one after the other from one stream of random numbers. A variant that draws one matrix more, or one of
# another shape, gets other numbers for everything that comes after. "The same seed" is then a different throw of the dice,
# and two throws never come out alike. How much does a throw alone change? We shall measure it.
#
# ## An ablation in miniature
#
# A full comparison takes hours. A miniature that takes a minute cannot show who is better in the end, but it shows how to
# look. We take the balance of the experts, and make everything small: only the decoder learns, and it gets its pictures
# *told* in words, as some of the conversations do when the toy is trained by the paper's recipe (`curriculum.in_words`). So
# there are no visual tokens to compute. One list of conversations, the same for all:

# %%
STEPS = 150
processor = Processor(train_tokenizer(sentences(1500), toy.language.vocab_size),
                      ProcessorConfig.of(toy))
stage = curriculum.Stage(1.0, {"scenes": 1}, ((1, 1),), told=1.0)
lessons = [curriculum.lesson(processor, 0, step, stage, 4).batch for step in range(STEPS)]
row = lessons[0].input_ids[0][lessons[0].attention_mask[0]].tolist()
print(processor.tokenizer.decode(row, skip_special_tokens=False))

# %% [markdown]
# ### Exercise 2: how uneven?
# Each layer has experts of its own. A load is counted in fair shares: 1 is an expert that gets as many visits as the
# mean. What all wait for is the busiest expert of the worst layer.

# %% [markdown] tags=["hints"]
# 1. `routing.load` (E,) counts the visits of each expert, whole numbers. Their mean, as floats, is a fair share.
# 2. For each layer `(load / load.mean()).max()`; of those the largest. `.item()` makes a plain number of it.
# 3. `max(..., default=1.0)` is for a model without such layers.

# %%
@grade("training.loop.heaviest_load")
def heaviest_load(routings: list[Routing]) -> float:
    """How many times its fair share the busiest expert of any layer gets, as a Python float.

    routings: of each layer with experts; routing.load (E,) counts how often each was chosen. A fair
    share is the mean of the layer's load. 1.0 if there are no such layers.
    """
    ### BEGIN SOLUTION
    busiest = []
    for routing in routings:
        load = routing.load.float()
        busiest.append((load / load.mean()).max().item())
    return max(busiest, default=1.0)
    ### END SOLUTION

# %% [markdown]
# The published strengths of both cures (a weight of 0.001, steps of 0.001) are made for runs a thousand times as long as
# ours. When we took them, 150 steps were too few to see much of them. So here both are ten times as strong.

# %%
def miniature(changes: Mapping, seed: int = 0, bias_step: float = 0.01) -> list[dict]:
    torch.manual_seed(seed)
    model = minivl2.build(ablations.changed(toy, changes))
    gates = [layer.mlp.gate for layer in model.decoder.layers if hasattr(layer.mlp, "gate")]
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=2e-3, weight_decay=0)
    lines = []
    for step, batch in enumerate(lessons, start=1):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        for gate, routing in zip(gates, loss.routings, strict=True):
            if hasattr(gate, "bias"):
                gate.step_bias(routing.load, bias_step)
        lines.append({"step": step, "loss": loss.text.item(),
                      "load": loop.heaviest_load(loss.routings)})
    return lines


heavier = {"language": {"aux_loss_alpha": 0.01}}
variants = dict(ablations.ABLATIONS["balance"].variants) | {"balance loss": heavier}
runs = {name: miniature(changes) for name, changes in variants.items()}
again = miniature(heavier, seed=1)      # the first once more, another throw of the dice

# %% [markdown]
# ### Exercise 3: smooth, but honest
# Every step has other conversations, some harder than others, so the losses jump. To see where a curve goes, take a mean
# that forgets: of the values so far, the newest counts 1, the one before it $m$, the one before that $m^2$, and so on,
#
# $$\mathrm{smooth}_i = \frac{\sum_{j \le i} m^{\,i-j}\, x_j}{\sum_{j \le i} m^{\,i-j}}$$
#
# Both sums can be carried along: when a value comes, multiply the old sum by $m$ and add the new. The sum below is what is
# forgotten most often. Without it the curve starts at nothing; with the first value in the place of a past it starts there
# and sticks to it. Both look like learning.

# %% [markdown] tags=["hints"]
# 1. Keep two numbers: `total`, the weighted sum of values, and `weight`, the sum of weights. Both begin at 0.
# 2. For each value: `total = memory * total + value`, `weight = memory * weight + 1`; what is shown is `total / weight`.

# %%
@grade("training.report.smooth")
def smooth(values: Sequence[float], memory: float = 0.95) -> list[float]:
    """The running mean above, as many numbers as there are values; m is `memory`, from 0 to 1."""
    ### BEGIN SOLUTION
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total = memory * total + value
        weight = memory * weight + 1
        out.append(total / weight)
    return out
    ### END SOLUTION

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
curves = runs | {"balance loss, other seed": again}
colours = (*report.COLOURS[:3], report.COLOURS[0])
for (name, lines), colour in zip(curves.items(), colours, strict=True):
    dashes = ":" if "seed" in name else "-"
    for axis, what in zip(axes, ("loss", "load"), strict=True):
        values = [line[what] for line in lines]
        if not axis.lines:
            axis.plot(values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(report.smooth(values, 0.9), color=colour, linestyle=dashes, label=name)
axes[0].set(ylabel="loss (nats a token)", xlabel="step", ylim=(0, 4))
axes[1].set(ylabel="busiest expert\n(× its fair share)", xlabel="step", ylim=(1, None))
axes[0].legend(frameon=False, fontsize=8)
for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# How to read such a figure:
#
# - **Against the throw of the dice.** Solid and dotted blue are the same toy with two seeds. What lies between them is luck.
#   A variant that stays as near to them has shown nothing.
# - **As curves.** Do they still fall? Then the end is only where we stopped. Have they crossed? Then the order would have
#   been another one half-way. A gap that opens early and stays is worth more than a last point.
# - **With the lag.** The pale line is what was measured (of one run only). A smoothed curve is late: with $m = 0.9$ by
#   $m / (1-m) = 9$ steps, as one sees where it falls.
#
# In the right panel there is something to see: without a cure the worst layer soon sends all tokens to the same experts,
# near the most that is possible (8 experts, 2 chosen: 4 times a share); with either cure it does not stay there. The bias,
# whose steps know only a direction, overshoots on the way. In the left panel there is nothing to see: the losses of the
# three differ, and those of the two seeds differ as much.
#
# ## How sure is a score?
#
# In the end a model answers questions, and some number of $n$ is right. Had we asked $n$ other questions, it would have
# been another number. How different? The usual answer is the standard error, $\sqrt{p(1-p)/n}$, and
# $p \pm 1.96$ of it: 95 times in 100, the score over endlessly many questions lies inside.
#
# For a model that has 0 of 50 right this gives $0 \pm 0$: certainly nothing, ever. That cannot be. Wilson's interval asks
# the other way round: for which true scores would what we saw be no surprise? With $z = 1.96$,
#
# $$\frac{1}{1 + z^2/n} \left( p + \frac{z^2}{2n} \;\pm\; \sqrt{\frac{z^2\,p(1-p)}{n} + \frac{z^4}{4n^2}} \right)$$
#
# ### Exercise 4: the interval

# %% [markdown] tags=["hints"]
# 1. Compute $z^2/n$ once. The middle is `score + z2 / 2`, and what is added and subtracted is
#    `math.sqrt(z2 * score * (1 - score) + z2**2 / 4)`.
# 2. Divide both ends by `1 + z2`. Of no questions nothing is known: (0, 1).

# %%
@grade("training.evaluation.interval")
def interval(score: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval (z = 1.96), low and high, for a fraction `score` right of n questions.

    n = 0 gives (0.0, 1.0).
    """
    ### BEGIN SOLUTION
    if n == 0:
        return 0.0, 1.0
    z2 = 1.96**2 / n
    middle = score + z2 / 2
    half = math.sqrt(z2 * score * (1 - score) + z2**2 / 4)
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    ### END SOLUTION

# %% [markdown]
# Does it keep its promise? For every true score we can compute how probable each number of right answers is, and so how
# often each interval holds the truth:

# %%
def held(how, n: int, p: float) -> float:
    inside = 0.0
    for right in range(n + 1):
        low, high = how(right / n, n)
        if low <= p <= high:
            inside += math.comb(n, right) * p**right * (1 - p) ** (n - right)
    return inside


def usual(score: float, n: int) -> tuple[float, float]:
    half = 1.96 * math.sqrt(score * (1 - score) / n)
    return score - half, score + half


truths = [i / 200 for i in range(1, 200)]
figure, axes = plt.subplots(1, 2, figsize=(11, 2.8), layout="constrained")
for name, how, colour in (("usual", usual, "#999999"), ("Wilson", evaluation.interval, "#7a4fc0")):
    axes[0].plot(truths, [held(how, 50, p) for p in truths], color=colour, label=name)
axes[0].axhline(0.95, color="black", linewidth=0.6, linestyle=":")
axes[0].set(xlabel="true score", ylabel="how often the interval\nof 50 answers holds it",
            ylim=(0.4, 1.02))
axes[0].legend(frameon=False)
for n, colour in ((50, "#b99aec"), (200, "#7a4fc0"), (1000, "#3b2066")):
    ends = [evaluation.interval(p, n) for p in truths]
    halves = [100 * (high - low) / 2 for low, high in ends]
    axes[1].plot(truths, halves, color=colour, label=f"n = {n}")
axes[1].set(xlabel="score", ylabel="half the interval,\nin points", ylim=(0, 16))
axes[1].legend(frameon=False)
for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Wilson's holds the truth about as often as it promises, wherever the truth is. The usual one fails near 0 and 1: exactly
# where a toy's abilities begin, and where they end if all goes well. (The teeth are there because 50 answers can only be
# right in whole numbers.)
#
# With fifty questions a score of a half is good to 13 points up and down, with two hundred to 7. To halve that again
# takes four times the questions.
#
# And a comparison has many scores. Take two models that are *equal*, and ask both about eleven abilities, each of which
# they truly have to a half. How far apart are they where they differ most?

# %%
random = torch.Generator().manual_seed(0)
figure, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
for n, colour in ((50, "#b99aec"), (200, "#7a4fc0")):
    right = torch.rand(2, 2000, 11, n, generator=random).lt(0.5).float().mean(-1)   # models, trials
    gap = 100 * (right[0] - right[1]).abs().amax(-1)
    axis.hist(gap, bins=range(0, 46, 2), color=colour, alpha=0.7,
              label=f"{n} questions each: {gap.mean():.0f} points on average")
axis.set(xlabel="largest difference of eleven, in points, between two equal models", yticks=[])
axis.legend(frameon=False)
axis.spines[["top", "right", "left"]].set_visible(False)

# %% [markdown]
# Who looks for the largest difference will find one. So: decide *before* the run what the idea should improve, look
# there, and take differences elsewhere as questions for another run.
#
# One thing no interval knows: it is about other *questions* to the same two models. Another seed gives two other models,
# and the dotted line of the miniature shows that they differ, too. One run each is an anecdote with good error bars.
#
# ## The full comparisons
#
# These were made by
#
# ```
# python train_tiny.py --ablate tiles         # and rule, latent, shared, balance
# ```
#
# one seed each; what came out is in `lessons/ablations/`, and drawn here. Left: the scores on new pictures, the lines
# their intervals, dotted what a blind guess would score. Right: the loss of each ability over the steps, and the load of
# the busiest expert. If you have made runs of your own, the figures are of yours.

# %%
FOLDER = Path(minivl2.__file__).parents[1] / "lessons" / "ablations"


def read(name: str) -> dict | None:
    path = FOLDER / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    print(f"There are no results of this comparison (lessons/ablations/{path.name}).\n"
          f"To make them, in some hours:  python train_tiny.py --ablate {name}")
    return None


def compared(name: str):
    """The figure of a comparison."""
    told = read(name)
    if told:
        metrics = {variant: one["metrics"] for variant, one in told["variants"].items()}
        title = f"{name}: {told['question']} ({told['steps']:,} steps)"
        return report.comparison(title, told["variants"], metrics)


def bought(name: str):
    """Of each ability: what the others score more than the toy, with the interval of that."""
    told = read(name)
    if not told:
        return None
    (base, first), *others = told["variants"].items()
    abilities = list(first["scores"])
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.24 * len(abilities)), layout="constrained")
    for i, (variant, one) in enumerate(others):
        for row, ability in enumerate(abilities):
            a, b = first["scores"][ability], one["scores"][ability]
            a_low, a_high = evaluation.interval(a, first["n"][ability])
            b_low, b_high = evaluation.interval(b, one["n"][ability])
            low = b - a - math.hypot(b - b_low, a_high - a)
            high = b - a + math.hypot(b_high - b, a - a_low)
            colour = report.COLOURS[i + 1]
            at = row + 0.3 * (i - (len(others) - 1) / 2)
            axis.plot([100 * low, 100 * high], [at, at], color=colour, alpha=0.5, linewidth=2)
            axis.plot(100 * (b - a), at, "o", markersize=4, color=colour,
                      label=None if row else variant)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set(yticks=range(len(abilities)), yticklabels=abilities, ylim=(len(abilities) - 0.5, -0.5),
             xlabel=f"points more than \"{base}\" scores")
    axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ### Tiles
# DeepSeek-VL looked at a picture at two fixed sizes. DeepSeek-VL2 cuts it into as many tiles as it needs, for what is
# small in large pictures: documents, tables, pointing (sections 1 and 2). Here both variants read words on pictures of
# two to four tiles. One sees the tiles and the whole, the other the whole shrunk into one tile, as the published models
# see each of three or more pictures. **Before you look:** what should the second be unable to do, and what not?

# %%
compared("tiles")

# %% [markdown]
# In our run the tiles made the difference between reading and not reading, by 37 and 54 points, where the intervals allow
# for 8; the curves part early and stay apart. Here one seed is enough to believe it. The other variant still reads a few
# words: some letters survive the shrinking. (And its steps were cheaper. But its curves flatten far above, and more of
# such steps would hardly bring back pixels that are gone.)
#
# ### The rule for tiles
# Lesson 1 had two rules for choosing the grid: the paper's sentence, which wastes the least padding, and the released code,
# which keeps the most pixels. How much does it matter? The same pictures, the same text to be read, in shorter runs.

# %%
compared("rule")

# %% [markdown]
# Much. For pictures two tiles long both rules choose the same grid. But a square picture fills *one* tile without any
# padding, so by the paper's sentence, read as it stands, it never gets more: every third picture here is shrunk to a
# quarter of its pixels. What cannot be read cannot be learned from either, and the rest is read worse, too. It is hard to
# believe that the authors trained that way; their code does not.
#
# ### Latent attention
# What it saves is certain, and known without training: the numbers to be remembered for a token and layer, above. The
# question is what that costs in quality. DeepSeek-V2 (appendix D.2, table 9) trained a pair of models with 16 B parameters
# and one with 250 B. The latent ones remembered 14 % and 4 % as many numbers, and scored *higher* in seven of the eight
# comparisons. Both of our variants have four heads, and the latent one's keys are wider by their rotary part. Ours asks:
# does the toy lose by it?

# %%
compared("latent")

# %% [markdown]
# Many intervals side by side are hard to compare by eye. What one wants to know is the difference, and *its* interval
# (the two add up like the sides of a right angle: squares, sum, root). A difference whose interval holds 0 may be luck.

# %%
bought("latent")

# %% [markdown]
# In our run nine of eleven abilities show no difference beyond luck. One is a little better without the latent ("grounded
# caption"), which the toss of eleven coins may do. And one, "exists", is worse by thirty points, far outside its interval.
# Does one need a latent to see whether something is there? Look at its curve. It lies flat at 0.35, which is
# $\ln 2 / 2$: the price of a blind yes or no (lesson 8). The toy's own began to fall below that after a third of the
# steps. So this is not an ability that is a little worse. It is one that has not *begun*, and when it begins is a matter of
# chance that no interval of ours contains: 200 questions tell very exactly that this one model cannot do it. Only other
# seeds could tell whether attention has to do with it.
#
# What remains: a third of the numbers remembered, and, as far as one run can tell, nothing lost.
#
# ### Shared experts
# DeepSeekMoE has two experiments, and they answer different questions. In section 4.4 models are *trained* with and
# without a shared expert, at equal size: with it they were better on most benchmarks. In section 4.5 the shared expert is
# *switched off* in a finished model, and one more routed expert is asked instead: the loss rises from 1.81 to 2.41. That
# says that this model had put much into it; not that a model without could not have learned as well. Ours is of the first
# kind.

# %%
compared("shared")

# %%
bought("shared")

# %% [markdown]
# In our run nothing, but for "boxes", six points lower without: one of eleven, and barely outside luck. The curves lie on
# each other. A toy whose world has one kind of sentence has little that every token needs, so little for a shared expert
# to hold. The promise was made for models that know languages.
#
# ### Balance
# Here the idea promises something else than scores: that all experts work. So look at the load first. In the paper on
# loss-free balancing (table 2), with models of 1 B and 3 B parameters, the bias left the busiest expert 4 % above its
# share, and the balance loss 72 % and 52 %; the perplexity was lower by less than one in a hundred. (Those loads are means
# over a whole validation set and over layers. Ours is the worst layer of a single batch, so it is never that even.)

# %%
compared("balance")

# %%
bought("balance")

# %% [markdown]
# The load of each expert, batch by batch: a row is an expert, white is a fair share, blue less, red more.

# %%
told = read("balance")
if told:
    layers = len(next(iter(told["variants"].values()))["metrics"][0]["experts"])
    figure, axes = plt.subplots(layers, len(told["variants"]), figsize=(11, 1.3 * layers + 0.5),
                                layout="constrained", sharex=True, sharey=True, squeeze=False)
    for column, (variant, one) in zip(axes.T, told["variants"].items(), strict=True):
        for layer, axis in enumerate(column):
            loads = torch.tensor([line["experts"][layer] for line in one["metrics"]])
            shown = axis.imshow(loads.T, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2,
                                interpolation="nearest",
                                extent=(0, one["metrics"][-1]["step"], loads.shape[1] - 0.5, -0.5))
        column[0].set_title(variant, fontsize=9)
        column[-1].set_xlabel("step")
    for layer, axis in enumerate(axes[:, 0]):
        axis.set_ylabel(f"MoE layer {layer + 1}\nexpert", fontsize=8)
    figure.colorbar(shown, ax=axes, label="times its fair share", extend="max")
    for variant, one in told["variants"].items():
        late = torch.tensor([line["experts"] for line in one["metrics"][-20:]]).mean(0)
        print(f"{variant:<16} busiest {late.max():.2f}, idlest {late.min():.2f} times its share, "
              "as a mean over the last 20 batches that were logged")

# %% [markdown]
# In our run, without a cure, two or three experts of each layer do nearly all the work, to the end: the busiest expert of
# the worst layer has more than three times its share, of four that are possible. Both cures bring it to about 1.4. And as
# means over batches, as in the paper, the order is the paper's: the bias evens out better than the balance loss (the lines
# above the picture). Here the idea does what it says.
#
# And the scores? They do not ask for it. Without a cure, "colour" and "boxes" were *better* than with the balance loss, by
# ten points, beyond the luck of the questions; with the bias, "colour" and "exists" were worse. Look at the curves of
# "colour" before you believe in a law: they fall off a ledge, one early, one late, one not yet. That is again a beginning
# that comes sooner or later. All the same: for a toy a few busy experts are enough, and what idle ones cost (machines that
# wait, parameters that hold nothing) is not in these figures.
#
# ## What a toy can say
#
# - **What holds at any size** is arithmetic: numbers in the cache, parameters, visual tokens. Nothing had to be trained.
# - **That a mechanism works** can be seen in a toy: whether a bias evens out the load, or whether letters that were shrunk
#   away can be read.
# - **That an idea pays** cannot. Our toy has 1.7 M parameters, knows 640 tokens, and saw some ten
#   thousands of pictures. The published models are up to sixteen thousand times as large. Experts may be worth nothing
#   where there is little to know, and everything where there is much. A small difference here is no forecast, and neither
#   is its absence.
# - **One seed each** leaves open how much is luck of training. `--seed 1` gives a second throw; the ideas in which you
#   believe most deserve three.
# - **What was tuned?** The toy's learning rates were found on the toy as it is, the first variant of each comparison. The
#   others might do better with their own. Every ablation in every paper has this tilt, usually towards what is proposed.
#
# **Try:** an idea of your own. A variant is one line in `ABLATIONS` of `minivl2/training/ablations.py`: half as many
# experts, each twice as wide; one layer less; a latent of half the width. Write down first what you expect.
#
# ## What you have now
# All of it. Each part of DeepSeek-VL2 written and tested, a model trained, its answers looked at beside a guess, and its
# ideas asked what they are worth. What is left is to use it: on your own pictures ([the README](../README.md) says how),
# on the real weights (lesson 11), or taken apart for something that does not exist yet.
