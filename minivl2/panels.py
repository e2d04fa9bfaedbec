"""The panels of the X-ray page: of all that was seen inside an answer, what is shown, in plain numbers.

Tests    tests/test_xray.py                 Letters    the legend in minivl2/config.py

One function a panel, in the order of the page. Each returns what the template writes into the HTML, and under "data"
what page.js draws. Attention is kept in 8 bits, each row with its own scale. Where all of it would be megabytes, layers
and heads are left out evenly, and the page says so.
"""

from __future__ import annotations

import base64
import io
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from minivl2 import cost, figures, grounding, tiling
from minivl2.config import SIZES
from minivl2.places import fitted, frames, places
from minivl2.processor import TILED_UP_TO
from minivl2.record import likeliest
from minivl2.visual_tokens import count

if TYPE_CHECKING:
    from minivl2.xray import XRay

READING_BYTES = 1_800_000       # attention of the answer's tokens
SEEING_BYTES = 800_000          # attention between patches
GATE_BYTES = 400_000            # experts of all tokens
LARGEST_PICTURE = 1152          # pixels along a side, on the page
FINEST_SIDE = 16                # more patches than so many along a tile are shown 2 x 2 as one

Channel = tuple[int, int]       # (layer, head); head -1 is the mean of all heads
MEAN = -1


# ------------------------------------------------------------------------------------ choosing and packing


def spread(n: int, most: int) -> list[int]:
    """At most so many of 0 .. n-1, evenly, the last one always among them."""
    most = min(n, most)
    return [round((k + 1) * n / most) - 1 for k in range(most)]


def channels(layers: int, heads: int, room: int) -> list[Channel]:
    """Which (layer, head) to keep if there is room for so many: all of them; or else the mean of the heads, in layers
    spread evenly, and single heads of the layer in the middle."""
    if layers * (heads + 1) <= room:
        return [(layer, head) for layer in range(layers) for head in (MEAN, *range(heads))]
    means = spread(layers, max(1, room // 2))
    middle = means[len(means) // 2]
    return [(layer, MEAN) for layer in means] + [(middle, head) for head in range(min(heads, max(1, room - len(means))))]


def seeing_plan(views: int, blocks: int, heads: int, patches: int) -> tuple[list[int], dict[int, list[int]]]:
    """Which views to show the attention of, and of which blocks which heads: {block: heads}."""
    room = SEEING_BYTES // patches**2
    if views * blocks * (heads + 1) > room:
        views = min(views, 2)           # the global view, and the first tile
    kept: dict[int, list[int]] = {}
    for block, head in channels(blocks, heads, room // max(1, views)):
        kept.setdefault(block, []).append(head)
    return list(range(views)), kept


def pooled(weights: Tensor, shown: int) -> Tensor:
    """(..., P, P) -> (..., shown*shown, shown*shown): what 2 x 2 patches together look at, on the mean."""
    side = round(weights.shape[-1] ** 0.5)
    if side == shown:
        return weights
    row, column = torch.arange(side * side) // side // 2, torch.arange(side * side) % side // 2
    member = torch.nn.functional.one_hot(row * shown + column, shown * shown).to(weights.dtype)     # (P, shown*shown)
    return (member / member.sum(0)).T @ weights @ member


def coded(numbers: Tensor) -> dict:
    """Whole numbers up to 255, as base64."""
    numbers = numbers.to(torch.uint8).contiguous()
    return {"shape": list(numbers.shape), "bytes": base64.b64encode(numbers.numpy().tobytes()).decode()}


def quantised(rows: Tensor) -> dict:
    """Numbers from 0 on, in 8 bits: each row (the last dimension) is a fraction of its own largest, which is kept.

    What is rounded is the running sum, so that errors do not add up: the page tells the sum over a whole view.
    """
    top = rows.amax(-1).float()
    sums = (rows.double() / top.double().clamp(min=1e-30)[..., None] * 255).cumsum(-1).round()
    levels = sums.diff(dim=-1, prepend=torch.zeros_like(sums[..., :1]))
    return coded(levels) | {"top": base64.b64encode(top.contiguous().numpy().tobytes()).decode()}


def embedded(image: Image.Image) -> str:
    """A picture as a data URI: exact if it is small, as WebP if it is large."""
    image = image.copy()
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    small = image.width * image.height <= 300_000
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True) if small else image.save(written, "WEBP", quality=88)
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(written.getvalue()).decode()}"


# ------------------------------------------------------------------------------------ the panels, in order


def picture_of(seen: XRay, i: int) -> dict:
    """1: a picture, the grids it might have been cut by, and the views it was cut into."""
    cfg, picture, grid = seen.processor.config, seen.pictures[i], seen.sizes[i]
    first = sum(1 + w * h for w, h in seen.sizes[:i])
    tiles = seen.batch.tiles[first : first + 1 + grid[0] * grid[1]]
    whole, local = figures.views_of(tiles, grid, cfg.image_mean, cfg.image_std)
    grids = []
    for width, height in cfg.candidate_resolutions:
        kept = tiling.effective_resolution(picture.size, (width, height))
        w, h = width // cfg.tile, height // cfg.tile
        grids.append({
            "grid": (w, h), "size": (width, height), "kept": kept, "share": kept / (picture.width * picture.height),
            "waste": 1 - kept / (width * height), "cost": count((w, h), cfg.side),
            "fit": fitted(picture.size, (width, height)),
            "paper": tiling.least_padding(picture.size, cfg.candidate_resolutions) == (width, height)})
    where = places(picture.size, grid, cfg.tile, cfg.patch_size, cfg.downsample_ratio)
    starts = image_starts(seen)
    data = {
        "name": seen.names[i], "width": picture.width, "height": picture.height, "picture": embedded(picture),
        "views": [embedded(whole), embedded(local)], "frames": frames(grid, cfg.tile), "grid": grid, "tile": cfg.tile,
        "side": cfg.side, "first": starts[i],
        "places": [[p.kind, p.view, p.row, p.column, p.in_view, rounded(p.in_picture)] for p in where],
    }
    return {
        "name": seen.names[i], "size": picture.size, "grid": grid, "side": cfg.side, "cost": count(grid, cfg.side),
        "grids": grids, "chosen": next(g for g in grids if g["grid"] == grid),
        "views": [{"frame": frame, "fit": fitted(picture.size, frame)} for frame in frames(grid, cfg.tile)], "data": data,
    }


def rounded(rectangle):
    return rectangle and [round(float(edge), 2) for edge in rectangle]


def image_starts(seen: XRay) -> list[int]:
    """At which place in the line each image's visual tokens begin. Two images may touch: then counting decides."""
    visual = seen.batch.image_mask[0].nonzero()[:, 0].tolist()
    before = 0
    starts = []
    for grid in seen.sizes:
        starts.append(visual[before])
        before += count(grid, seen.processor.config.side)
    return starts


def seeing_of(seen: XRay) -> dict | None:
    """2: what patches look at, and the colours of their vectors."""
    record, vision, side = seen.record, seen.model.config.vision, seen.shown_side()
    if not record.seeing:
        return None
    order = [(block, head) for block in sorted(seen.blocks) for head in seen.blocks[block]]
    maps = []
    for block, head in order:
        heads = record.seeing[block]                                                    # (views, H, P, P)
        maps.append(pooled(heads.mean(1) if head == MEAN else heads[:, head], side))
    blocks = sorted(record.features)
    views = []
    for i, (w, h) in enumerate(seen.sizes):
        first = sum(1 + a * b for a, b in seen.sizes[:i])
        for k in range(1 + w * h):
            shown_by = seen.which[first + k]
            if k and shown_by == seen.which[first]:
                continue                                # the twin of the global view
            views.append({"picture": i, "tile": k, "seen": shown_by})
    whole = len(order) == vision.layers * (vision.heads + 1) and len(seen.views) == len(seen.kept)
    return {
        "blocks": vision.layers, "heads": vision.heads, "side": side, "grid": vision.grid, "whole": whole,
        "shown": len(seen.blocks), "views": len(seen.views), "of_views": len(seen.kept),
        "data": {
            "side": side, "grid": vision.grid, "patch": vision.patch_size, "views": views, "with_attention": seen.views,
            "channels": order, "attention": quantised(torch.stack(maps)), "blocks": blocks, "heads": vision.heads,
            "colours": coded(torch.stack([figures.principal_colours(record.features[block]) for block in blocks])),
        },
    }


def line_of(seen: XRay) -> list[dict]:
    """3: the line as the decoder sees it: stretches of text, each token with its id, and images between them."""
    say = seen.processor.tokenizer
    prompt = seen.batch.input_ids.shape[1]
    spans = {start: (i, count(grid, seen.processor.config.side)) for i, (start, grid) in
             enumerate(zip(image_starts(seen), seen.sizes, strict=True))}
    line: list[dict] = []
    n = 0
    everything = seen.batch.input_ids[0].tolist() + seen.answer
    while n < len(everything):
        if n in spans:
            i, length = spans[n]
            line.append({"kind": "image", "first": n, "picture": i, "length": length})
            n += length
            continue
        kind = "text" if n < prompt else "answer"
        if not line or line[-1]["kind"] != kind:
            line.append({"kind": kind, "first": n, "tokens": []})
        line[-1]["tokens"].append([everything[n], spoken(say, everything[n])])
        n += 1
    return line


def spoken(tokenizer, token: int) -> str:
    """One token by itself, as text; half of a character is a question mark in a diamond."""
    return tokenizer.decode([token], skip_special_tokens=False) or f"token {token}"


def reading_of(seen: XRay) -> dict:
    """4: for each token of the answer where the decoder looked, and what else it might have said."""
    steps, lang = seen.record.steps, seen.model.config.language
    attention = [step.attention for step in steps if step.attention is not None]
    longest = attention[-1].shape[-1]
    kept = channels(lang.num_hidden_layers, lang.num_attention_heads, READING_BYTES // (len(attention) * longest))
    rows = torch.zeros(len(kept), len(attention), longest)
    for n, weights in enumerate(attention):                                             # (L, H, S)
        for c, (layer, head) in enumerate(kept):
            rows[c, n, : weights.shape[-1]] = weights[layer].mean(0) if head == MEAN else weights[layer, head]
    likely = []
    for step, token in zip(steps, seen.answer, strict=True):
        likely.append({
            "chosen": [spoken(seen.processor.tokenizer, token), float(step.logits.float().softmax(-1)[token])],
            "top": [[t, spoken(seen.processor.tokenizer, t), p] for t, p in likeliest(step.logits, 5)]})
    return {
        "layers": lang.num_hidden_layers, "shown": len({layer for layer, _ in kept}),
        "whole": len(kept) == lang.num_hidden_layers * (lang.num_attention_heads + 1),
        "steps": len(attention), "of_steps": len(steps),
        "data": {"channels": kept, "prompt": seen.batch.input_ids.shape[1], "ids": seen.answer, "likely": likely,
                 "attention": quantised(rows)},
    }


def gates_of(seen: XRay) -> dict | None:
    """5: the experts of every token in every layer."""
    lang, record = seen.model.config.language, seen.record
    if not record.gates:
        return None
    K, E, tokens = lang.num_experts_per_tok, lang.n_routed_experts, len(record.ids)
    every = sorted(record.gates)
    kept = [every[k] for k in spread(len(every), max(1, GATE_BYTES // (2 * K * tokens)))]
    visual = torch.zeros(tokens, dtype=torch.bool)
    visual[: seen.batch.image_mask.shape[1]] = seen.batch.image_mask[0].cpu()
    loads = []
    for layer in kept:
        experts = record.routing(layer).experts
        load = {name: experts[which].flatten().bincount(minlength=E)
                for name, which in (("visual", visual), ("text", ~visual))}
        drawing = figures.svg(partial(figures.draw_load, title=f"layer {layer + 1}"), load, name=f"load {layer}")
        says = [f"of {name} tokens' choices the busiest expert, {int(times.argmax())}, gets "
                f"{100 * int(times.max()) / int(times.sum()):.0f} %" for name, times in load.items() if times.sum() > 0]
        loads.append({"layer": layer, "svg": drawing, "says": ", ".join(says)})
    routing = [record.routing(layer) for layer in kept]
    weights = torch.stack([r.weights.float() for r in routing])                         # (layers, tokens, K)
    return {
        "experts": E, "chosen": K, "shared": lang.n_shared_experts or 0, "loads": loads, "layers": len(every),
        "dense": lang.num_hidden_layers - len(every), "whole": len(kept) == len(every),
        "data": {"layers": kept, "experts": E, "chosen": coded(torch.stack([r.experts for r in routing])),
                 "weights": quantised(weights)},
    }


def memory_of(seen: XRay) -> dict:
    """6: what is remembered of this conversation, and what the published models would remember."""
    record, ours = seen.record, seen.model.config
    words = len(record.ids) - sum(count(grid, seen.processor.config.side) for grid in seen.sizes)
    per_token = sorted(record.remembered.items())
    rows = [row_of("this model", ours, len(record.ids))]
    for name, config in SIZES.items():
        if name == "toy" or config.language == ours.language:
            continue
        tile = config.vision.image_size
        tiled = len(seen.pictures) <= TILED_UP_TO
        grids = [tiling.grid_of(p.size, config.candidate_resolutions, tile) if tiled else (1, 1) for p in seen.pictures]
        rows.append(row_of(name.capitalize(), config, words + sum(count(g, config.tokens_per_side) for g in grids)))
    numbers = {row["name"]: (row["kept"], row["multi_head"]) for row in rows}
    return {
        "rows": rows, "tokens": len(record.ids), "words": words,
        "measured": sum(numbers for _, (numbers, _) in per_token), "width": per_token[0][1][1],
        "bytes": sum(numbers * width for _, (numbers, width) in per_token) * len(record.ids),
        "svg": figures.svg(figures.draw_memory, numbers, size=(4.6, 0.5 + 0.55 * len(rows)), name="memory"),
    }


def row_of(name: str, config, tokens: int) -> dict:
    lang = config.language
    kept = cost.cache_numbers(lang)
    multi_head = cost.multi_head_numbers(lang) if lang.use_mla else kept
    return {"name": name, "latent": lang.use_mla, "kept": kept, "multi_head": multi_head, "layers": lang.num_hidden_layers,
            "tokens": tokens, "bytes": 2 * kept * lang.num_hidden_layers * tokens,
            "multi_head_bytes": 2 * multi_head * lang.num_hidden_layers * tokens}


def boxes_of(text: str) -> list[dict]:
    """7: the boxes of an answer, in percent of the picture, each label with its colour."""
    boxes, colours = grounding.parse(text), {}
    for box in boxes:
        colours.setdefault(box.label, grounding.COLOURS[len(colours) % len(grounding.COLOURS)])
    return [{"label": box.label, "colour": colours[box.label],
             "corners": [round(100 * corner / grounding.LARGEST, 2) for corner in box[1:]]} for box in boxes]
