# %% [markdown]
# # 11. The real weights
#
# *40 minutes. Modules: `minivl2/names.py`, `minivl2/weights.py`, `minivl2/files.py`, `minivl2/cost.py`,
# `minivl2/compare.py`. You need: the parts of the model by name (lessons 2 to 7).*
#
# A model is its code and its numbers. The numbers of DeepSeek-VL2 are published: three models, 7, 32 and 55 gigabytes.
# To run them, every one of thousands of tensors must come to the place in *our* code where it belongs, and if one does
# not, nothing crashes. This lesson is about noticing.
#
# **In the paper:** DeepSeek-VL2, table 1 (the three models). The layout of the files is that of the published
# repositories.
#
# **At the end you will have written** the names, the strict check, a way to save that leaves a whole checkpoint or
# none, what a token's memory costs, and a search for the first module in which two implementations part.

# %%
import copy
import json
import os
import re
import shutil
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import minivl2
from minivl2 import Config, Processor, cost, figures, names, projector, toyworld
from minivl2.compare import Call, difference, trace
from minivl2.config import LanguageConfig
from minivl2.grading import grade
from minivl2.names import UNUSED, hint
from minivl2.processor import ProcessorConfig
from minivl2.training.tokenizer import sentences, train_tokenizer

torch.manual_seed(0)
torch.set_num_threads(1)
figures.where("vision", "projector", "attention", "experts")

# %% [markdown]
# ## A model to lose
#
# We need a model that can do something. Six pictures learned by heart, as in lesson 7, are enough, and take some
# seconds.

# %%
toy = Config.named("toy")
processor = Processor(train_tokenizer(sentences(1500), toy.language.vocab_size),
                      ProcessorConfig.of(toy))
samples = [toyworld.draw(f"by heart {i}", "scenes", (1, 1)) for i in range(6)]
talks = [toyworld.messages([next(q for q in s.questions if q.ability == "caption")])
         for s in samples]
pairs = list(zip(talks, samples, strict=True))
by_heart = processor.batch([processor(t, s.images, training=True) for t, s in pairs])
asked = processor.batch([processor(t[:1], s.images) for t, s in pairs])

model = minivl2.build("toy")
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(50):
    optimizer.zero_grad()
    model.loss(by_heart).total.backward()
    optimizer.step()
model.eval()


def answers(model: minivl2.DeepSeekVL2, n: int = 3) -> list[str]:
    return [processor.decode(ids.tolist()) for ids in minivl2.generate(model, asked, 26)[:n]]


print("\n".join(answers(model)))

# %% [markdown]
# ## What lies in the folder
#
# `save` writes what the published repositories hold, file for file, so what reads theirs reads ours:

# %%
home = Path(tempfile.mkdtemp())
minivl2.save(model, processor, home / "mine")
says = {"config.json": "the numbers of minivl2/config.py", "tokenizer.json": "words and their ids",
        "processor_config.json": "sizes of tiles, mean and deviation of pixels",
        "tokenizer_config.json": "for other readers", "model.safetensors": "the tensors"}
for file in sorted((home / "mine").iterdir()):
    print(f"{file.stat().st_size:>10,} bytes  {file.name:<24} {says[file.name]}")

# %% [markdown]
# The large models come in several files, `model-00001-of-000008.safetensors` and so on, with an index that says which
# tensor is where. The format is simple enough to be read by hand: eight bytes that say how long the header is, the
# header (names, types, shapes, places), then nothing but numbers. No code can hide in it, which is why it has replaced
# pickled files; and a tensor can be *mapped* from the disk, so that it is read only where it is touched.

# %%
raw = (home / "mine" / "model.safetensors").read_bytes()
length = int.from_bytes(raw[:8], "little")
header = json.loads(raw[8:8 + length])
for name in list(header)[1:120:17]:
    print(f"{name:<62} {header[name]['dtype']} {header[name]['shape']}")

# %% [markdown]
# ## Names
#
# Those are not our names. We say `decoder.layers.1.attn.kv_down`, after the paper's $W^{DKV}$; the files say
# `language.model.layers.1.self_attn.kv_a_proj_with_mqa`. One table translates:

# %%
for pattern, replacement in names.NAMES:
    print(f"{pattern:<42} {replacement}")

# %% [markdown]
# ### Exercise 1: the published name
# Write the translation yourself, by whatever means. Look out for three traps. `view_separator` is misspelled in the
# files, and what is there counts. The two norms of a layer have the same shape: swapped, they load without complaint.
# And the vision tower has an `attn` and a `norm`, too, which keep their names.

# %% [markdown] tags=["hints"]
# 1. A list of pairs, applied from top to bottom with `re.sub(pattern, replacement, name)`. A pattern that begins with
#    `^decoder\.` leaves the tower alone. In the replacement, `\1` is what stood in the pattern's brackets.
# 2. Special cases first (`^decoder\.head\.` becomes `language.lm_head.`), then layers
#    (`^decoder\.(layers\.\d+)\.attn_norm\.`), then all that is left: `^decoder\.` becomes `language.model.`
# 3. Last, the parts inside attention and MLP, recognised by what is already translated: `\.self_attn\.kv_down\.`
#    becomes `.self_attn.kv_a_proj_with_mqa.` The cell above has it all.

# %%
@grade("names.published_name")
def published_name(ours: str) -> str:
    """decoder.X is language.model.X, but decoder.head.X is language.lm_head.X. Inside:
    embed -> embed_tokens; attn_norm -> input_layernorm; mlp_norm -> post_attention_layernorm;
    attn -> self_attn, and in it q_down, q_norm, q_up -> q_a_proj, q_a_layernorm, q_b_proj and
    kv_down, kv_norm, kv_up -> kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj;
    mlp.shared -> mlp.shared_experts; mlp.gate.bias -> mlp.gate.e_score_correction_bias.
    Outside: vision.patch_embed.X -> vision.patch_embed.proj.X; view_separator -> view_seperator.
    Everything else keeps its name.
    """
    ### BEGIN SOLUTION
    for pattern, replacement in names.NAMES:
        ours = re.sub(pattern, replacement, ours)
    return ours
    ### END SOLUTION

# %% [markdown]
# ## An expert is missing
#
# PyTorch can load with `strict=False`: tensors that are missing stay as they are, which is random, and tensors that
# nobody wants are dropped. It is the quickest way to make an error go away. Let us lose something: one routed expert of
# the toy's 24, then all of them, then the attention of one layer, then all blocks of the vision tower.

# %%
def after_losing(part: str) -> minivl2.DeepSeekVL2:
    torch.manual_seed(1)
    other = minivl2.build("toy")            # random, as a model is before it is loaded
    state = {name: t for name, t in model.state_dict().items() if part not in name}
    other.load_state_dict(state, strict=False)
    return other.eval()


for part in ("nothing", "layers.2.mlp.experts.3.", ".mlp.experts.", "layers.1.attn.",
             "vision.blocks."):
    other = after_losing(part)
    with torch.no_grad():
        loss = other.loss(by_heart).text.item()
    print(f"lost {part}: loss {loss:.2f}\n    {answers(other, 1)[0]}")

# %% [markdown]
# Whole sentences, all of them, in good toy English; even the blind one talks on. Here the loss rises, because we have
# one to compare with. Somebody who loads Tiny, with its 704 routed experts, has only answers to read, and would never
# find the one expert that stayed random.
#
# So `load` is strict, in words: it compares all names and shapes with those the configuration asks for, before it reads
# a single number.
#
# ### Exercise 2: the check
# One exception is part of the format: the files hold SigLIP's pooling head (`vision.attn_pool.*`), which DeepSeek-VL2
# never runs. It may be there or not. If it is there, its shape must be right: we carry it along when we save.

# %% [markdown] tags=["hints"]
# 1. `wanted.keys() - got.keys()` is a set of the missing names, the other way round those too many. Leave out what
#    starts with `UNUSED` from both.
# 2. Sorted, one line for each: `f"{name}: missing{hint(name, extra)}"`, then `f"{name}: not a tensor of this model"`.
# 3. Then the shapes, for names that both have, pooling head included. Shapes are tuples: compare them whole.

# %%
@grade("names.mismatches")
def mismatches(wanted: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]]) -> list[str]:
    """What differs, a line each: missing names, sorted; then names too many, sorted; then shapes,
    in the order of wanted.

    "{name}: missing{hint(name, extra)}", where extra is the list of names too many
    "{name}: not a tensor of this model"
    "{name}: shape [2, 3], but the configuration asks for [3, 2]"
    Names that start with UNUSED are never missing and never too many.
    """
    ### BEGIN SOLUTION
    extra = sorted(name for name in got.keys() - wanted.keys() if not name.startswith(UNUSED))
    missing = sorted(name for name in wanted.keys() - got.keys() if not name.startswith(UNUSED))
    problems = [f"{name}: missing{hint(name, extra)}" for name in missing]
    problems += [f"{name}: not a tensor of this model" for name in extra]
    problems += [
        f"{name}: shape {list(got[name])}, but the configuration asks for {list(shape)}"
        for name, shape in wanted.items() if name in got and got[name] != shape]
    return problems
    ### END SOLUTION

# %%
wanted = minivl2.published_names(model)
got = {name.replace("seperator", "separator"): shape for name, shape in wanted.items()}
del got["language.model.layers.2.mlp.experts.3.up_proj.weight"]
got["language.lm_head.weight"] = (128, 640)
print("\n".join(mismatches(wanted, got)))

# %% [markdown]
# For all three published models this list is empty: their names and shapes are in `tests/manifests.json`, 2,582 for
# Tiny, and a test compares them with ours, without a single weight on the disk.
#
# ## Whole or not at all
#
# The opposite way, saving, has one rule: whatever happens, there is a whole checkpoint. Training saves every minute,
# and one day the disk is full, or somebody presses Ctrl-C, in the middle of a file. Then the old one is half
# overwritten by the new one, and both are lost.
#
# Files cannot be written in one instant. But they can be *renamed* in one. So: write everything into a folder beside
# the right place, and when all is there, rename.
#
# ### Exercise 3: written whole
# A context manager. If the folder exists, its other files stay: replace one by one, each by a rename. (The folder is
# then not changed in one instant, but no *file* is ever half, and whoever has the old one open keeps the old one.
# `load` maps its tensors from open files, so a model can be saved over the very files it lives in.)

# %% [markdown] tags=["hints"]
# 1. `tempfile.mkdtemp(dir=folder.parent)` makes the folder beside it: a rename works within one disk only, so not in
#    `/tmp`.
# 2. `try: yield staged`, then the renames, still inside `try`, so that they happen only if the block raised nothing;
#    and `finally: shutil.rmtree(staged, ignore_errors=True)`. No `except`: the error shall go on.
# 3. `os.rename(staged, folder)` if there is no folder yet, else `os.replace(file, folder / file.name)` for each file.
#    (Ours also calls `os.fsync` on each file first, so that the numbers reach the disk before the name does.)

# %%
@grade("files.written_whole")
@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """Gives the block an empty folder to write files into; they move to `folder` when it ends well.

    Parents are made where they are missing. A new folder appears by one rename. In an existing one
    each file is replaced by renaming; other files stay. After an error everything is as before,
    the error goes on, and no litter stays beside the folder.
    """
    ### BEGIN SOLUTION
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield staged
        if not folder.exists():
            os.rename(staged, folder)
            return
        for file in staged.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    ### END SOLUTION

# %% [markdown]
# ## Will it fit?
#
# A model needs memory for its weights, and for what it remembers of the tokens so far (lessons 4 and 5). Both follow
# from the configuration alone, before anything is downloaded. The weights are `cost.parts`, summed. The cache is, per
# token and layer:
#
# - multi-head attention: a key and a value, each as wide as a head, for each head that has its own;
# - latent attention: the latent, $C$ numbers, and the rotary key that all heads share, $R$ numbers.
#
# ### Exercise 4: what a token costs to remember

# %% [markdown] tags=["hints"]
# 1. `lang.use_mla` says which attention it is.
# 2. Queries are not remembered: count `lang.num_key_value_heads`, of width `lang.head_dim`, twice.
# 3. Latent: `lang.kv_lora_rank + lang.qk_rope_head_dim`.

# %%
@grade("cost.cache_numbers")
def cache_numbers(lang: LanguageConfig) -> int:
    """Numbers remembered per token and layer.

    lang.use_mla: latent attention or multi-head? Widths: num_key_value_heads, head_dim,
    kv_lora_rank (C), qk_rope_head_dim (R).
    """
    ### BEGIN SOLUTION
    if lang.use_mla:
        return lang.kv_lora_rank + lang.qk_rope_head_dim
    return 2 * lang.num_key_value_heads * lang.head_dim
    ### END SOLUTION

# %%
bits = {"float32": 32, "bfloat16": 16, "8 bits": 8, "4 bits": 4}
shades = ("#b99aec", "#8fc1ef", "#3bb273", "#f4a261")
figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
for row, name in enumerate(("tiny", "small", "base")):
    total = sum(part.total for part in cost.parts(Config.named(name)))
    lang = Config.named(name).language
    cache = 2 * cache_numbers(lang) * lang.num_hidden_layers * 4096 / 1e9
    for k, ((kind, width), shade) in enumerate(zip(bits.items(), shades, strict=True)):
        y, size = row + 0.2 * (k - 1.5), total * width / 8 / 1e9
        axis.barh(y, size, 0.18, color=shade, label=kind if row == 0 else None)
        axis.barh(y, cache, 0.18, left=size, color="#d62246",
                  label="cache" if row + k == 0 else None)
        axis.text(size + cache + 1, y, f"{size:.1f} + {cache:.2f}", va="center", fontsize=7)
for memory in (16, 32, 64):
    axis.axvline(memory, color="#aaaaaa", lw=0.8, ls="--")
axis.set(yticks=range(3), yticklabels=("tiny", "small", "base"),
         xlabel="GB of weights, and of a full cache of 4096 tokens in bfloat16")
axis.invert_yaxis()
axis.legend(frameon=False, fontsize=8)
axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# The dashed lines are machines with 16, 32 and 64 GB. Tiny in bfloat16, as published, fits a laptop; Base does not. All
# experts must be *there*, though a token visits few: a mixture saves work, not memory.
#
# ### Fewer bits
# Hence **quantisation**: keep a weight in 8 or 4 bits instead of 16. The simplest way: for each row of a matrix, one
# scale that maps its largest number to the largest whole number, and the rest rounded. A row of $n$ numbers then costs
# $n$ times 8 or 4 bits, and one scale:
#
# $$\hat{w} = s \cdot \mathrm{round}(w / s), \qquad s = \frac{\max_j |w_j|}{2^{\,b-1} - 1}$$
#
# `--quantize int8` does just this while loading, and `int4` gives every 32 numbers of a row a scale of their own
# (`minivl2/packed.py`; [docs/speed.md](../docs/speed.md) says what it buys). What it costs can be tried in six lines. All
# matrices of the toy, rounded to fewer and fewer bits:

# %%
@torch.no_grad()
def rounded(model: minivl2.DeepSeekVL2, bits: int) -> minivl2.DeepSeekVL2:
    other = copy.deepcopy(model)
    for w in other.parameters():
        if w.ndim > 1:
            s = w.abs().amax(-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
            w.copy_(s * (w / s).round())
    return other


for kept in (8, 6, 4, 3, 2):
    other = rounded(model, kept)
    with torch.no_grad():
        loss = other.loss(by_heart).text.item()
    print(f"{kept} bits: loss {loss:.3f}   {answers(other, 1)[0][:70]}")

# %% [markdown]
# The toy does not notice before three bits, and at two, which are three values, its loss is many times higher, and the
# sentence still stands. A model that knows six pictures by heart is sure of every word, so it has much to lose before
# it says another: compare losses, not answers. (This is the crudest way. Better ones keep the few very large numbers
# apart, [LLM.int8()](https://arxiv.org/abs/2208.07339), or round each number with regard to what the others did to the
# answers, [GPTQ](https://arxiv.org/abs/2210.17323).)
#
# ## Loading Tiny
#
# If you have the weights, this is all:
#
# ```python
# model, processor = minivl2.load("weights/tiny", dtype=torch.bfloat16)
# ```
#
# `minivl2 download tiny` fetches them (6.7 GB; or take the files by hand, see [weights](../weights/README.md)),
# `minivl2 verify weights/tiny` reads every number. In the files' own type, nothing is read until the model touches it.
#
# If you cannot download them: everything above needed none. The same code is tested on four miniatures in
# [tests/goldens](../tests/goldens/README.md), with random weights, but written by the *published* implementation, along
# with what it computed from them. That is the strongest test there is of whether our code is theirs. Which leads to the
# last question.

# %%
tiny = Path("../weights/tiny")
if tiny.is_dir():
    real, real_processor = minivl2.load(tiny, dtype=torch.bfloat16)
    question = [{"role": "user", "content": "<image>\ndescribe this picture."}]
    ids = minivl2.generate(real, real_processor(question, samples[0].images), 40)[0]
    print(real_processor.decode(ids.tolist()))
else:
    print("weights/tiny is not there: reading on without it")

# %% [markdown]
# ## They should be the same, and are not
#
# The day comes when all tensors fit and the answer is still wrong. Two implementations, the same weights, other logits.
# The logits say nothing about where. So ask every module. `trace` hangs a hook on each, runs the model, and writes down
# what each was *given* and what it *gave*. We build four wrong ones on purpose:

# %%
def wrong(what: str) -> minivl2.DeepSeekVL2:
    other = copy.deepcopy(model)
    if what == "attention turns the wrong way":
        attention = other.decoder.layers[2].attn
        right = type(attention).forward
        attention.forward = types.MethodType(
            lambda self, x, turn, *rest: right(self, x, (turn[0], -turn[1]), *rest), attention)
    elif what == "gate and up swapped in one expert":
        expert = other.decoder.layers[1].mlp.experts[busiest]
        expert.gate_proj, expert.up_proj = expert.up_proj, expert.gate_proj
    elif what == "a norm with another epsilon":
        other.decoder.layers[3].mlp_norm.eps = 0.5
    elif what == "one weight of the tower":
        with torch.no_grad():
            other.vision.blocks[1].mlp.fc1.weight[0, 0] += 0.5
    return other


with torch.no_grad():
    busiest = int(model.loss(by_heart).routings[0].load.argmax())   # one that is asked at all
kinds = ("attention turns the wrong way", "gate and up swapped in one expert",
         "a norm with another epsilon", "one weight of the tower")
ours = trace(model, lambda m: m(asked))
theirs = {kind: trace(wrong(kind), lambda m: m(asked)) for kind in kinds}

# %%
blocks = [*(name for name in ours if re.fullmatch(r"vision\.blocks\.\d|decoder\.layers\.\d", name)),
          "decoder.head"]
figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
for kind, mark in zip(kinds, "osv^", strict=True):
    apart = [difference(theirs[kind][name][0].gave[:1], ours[name][0].gave[:1]) for name in blocks]
    axis.plot([max(x, 1e-9) for x in apart], mark + "-", label=kind, ms=4, lw=1)
axis.set(yscale="log", ylim=(3e-10, 10), ylabel="relative difference",
         yticks=[1e-9, 1e-6, 1e-3, 1], yticklabels=["none", "1e-6", "1e-3", "1"])
axis.set_xticks(range(len(blocks)), [name.partition(".")[2] for name in blocks],
                rotation=20, fontsize=8)
axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.17, 0.45))
axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# After the mistake everything differs, and nothing is learned from the end. And *the first module whose results differ*
# is not it either. In attention that turns the wrong way, the first to differ is `o_proj`, the last matrix of that
# module: it was handed wrong numbers, and multiplied them correctly. The guilty one is the first that was **given the
# same and gave something else**: there the mistake must be inside. For `o_proj` that does not hold; for the attention
# around it, it does.
#
# ### Exercise 5: where they part
# `calls[name]` is a list of `Call(given, gave)`, lists of tensors, one for each time the module ran. The names come in
# the order in which modules finished, so a module's parts come before it: the first that fits is the smallest.

# %% [markdown] tags=["hints"]
# 1. Go through `calls` in its own order, and through `zip(calls[name], others.get(name, []))`.
# 2. `difference(list, list)` is a number: 0 for the same, infinite for other shapes. Two right implementations differ
#    in the last digits, so "the same" means at most `tolerance`, both times.
# 3. The first name with `difference(given) <= tolerance < difference(gave)` is the answer; `None` if there is none.

# %%
@grade("compare.first_difference")
def first_difference(calls: dict[str, list[Call]], others: dict[str, list[Call]],
                     tolerance: float = 1e-4) -> str | None:
    """The first name in `calls` for which some call was given the same in both models (difference
    of .given at most tolerance) and gave something else (difference of .gave above it). None if
    there is none. Compares the first call with the first, the second with the second; names or
    calls that only one of them has are skipped.
    """
    ### BEGIN SOLUTION
    for name in calls:
        for one, other in zip(calls[name], others.get(name, []), strict=False):
            if difference(one.given, other.given) <= tolerance < difference(one.gave, other.gave):
                return name
    return None
    ### END SOLUTION

# %%
for kind in kinds:
    print(f"{kind:<36} {first_difference(theirs[kind], ours)}")
shuffle = projector.pixel_shuffle
projector.pixel_shuffle = lambda *inputs: shuffle(*inputs).roll(1, -1)      # a fifth one
print(f"{'a pixel shuffle in another order':<36} "
      f"{first_difference(trace(model, lambda m: m(asked)), ours)}")
projector.pixel_shuffle = shuffle

# %% [markdown]
# Each is found in the module that holds it, though the mistakes are of five kinds: wrong code, swapped weights, a wrong
# constant, a single wrong number of 1.6 million, a wrong order. (For `gate` and `up` it names `gate_proj`, the first of
# the two.) With the real weights, the other side is the published code; the names differ, so translate them with
# exercise 1, and the search is the same. It works wherever modules have twins.
#
# ## What you have now
# The way from the published files into our code and back, and the means to tell when it went wrong.
# `minivl2/weights.py` puts it together: read `load`, thirty lines, of which you know every one. If you have Tiny on
# your disk and its answers are strange, you also know what to do.

# %%
shutil.rmtree(home)
