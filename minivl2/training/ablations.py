"""What each idea buys: the toy with and without it, trained alike.

    python train_tiny.py --ablate latent

Lesson   lessons/12_what_each_idea_buys.ipynb      Findings    lessons/ablations.md
Tests    tests/test_ablations.py

Every idea is a change of the toy's configuration. The variants of one comparison get the same seed, the same pictures
and the same number of steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from minivl2 import cost
from minivl2.config import Config
from minivl2.processor import ProcessorConfig
from minivl2.training.loop import Plan, mean_by_name
from minivl2.training.report import draw_comparison

ONE_TILE = (Config.named("toy").vision.image_size,) * 2


@dataclass(frozen=True)
class Ablation:
    question: str
    variants: Mapping[str, Mapping[str, Any]]       # what changes, by the variant's name; nothing: the toy as it is
    course: str = "things"


ABLATIONS = {
    "tiles": Ablation(
        "what do the tiles read that the global view alone does not?",
        {"global view and tiles": {}, "global view only": {"candidate_resolutions": (ONE_TILE,)}}, "reading"),
    "rule": Ablation(
        "the released rule keeps the most pixels, the paper's pads the least",
        {"released rule": {}, "paper's rule": {"tile_rule": "paper"}}, "reading"),
    "latent": Ablation(
        "does a compressed cache cost quality?",
        {"latent attention": {}, "multi-head attention": {"language": {"use_mla": False}}}),
    "shared": Ablation(
        "are experts that every token visits worth their place?",
        {"2 routed, 1 shared": {}, "3 routed, none shared": {
            "language": {"n_shared_experts": 0, "num_experts_per_tok": 3}}}),
    "balance": Ablation(
        "what keeps the experts busy?",
        {"balance loss": {},
         "correction bias": {"language": {"aux_loss_alpha": 0.0, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
                                          "norm_topk_prob": True}},
         "nothing": {"language": {"aux_loss_alpha": 0.0}}}),
}


def configurations(variant: str = "") -> tuple[Config, ProcessorConfig]:
    """Of the toy, or of one of its variants, called "ablation: variant" as in "latent: multi-head attention"."""
    changes: dict[str, Any] = {}
    if variant:
        ablation, _, name = variant.partition(": ")
        changes = dict(ABLATIONS[ablation].variants[name])
    rule = changes.pop("tile_rule", "released")
    config = changed(Config.named("toy"), changes)
    return config, dataclasses.replace(ProcessorConfig.of(config), tile_rule=rule)


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A configuration with other values for some of its fields; a mapping changes fields of a part."""
    return dataclasses.replace(config, **{
        name: changed(getattr(config, name), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()})


def folder_of(variant: str, house: Path) -> Path:
    """Where the run of this variant lives."""
    return house / variant.partition(": ")[2].replace(" ", "-").replace("'", "")


def facts(variant: str) -> str:
    """What the variant costs, in words."""
    config, _ = configurations(variant)
    parts = cost.parts(config)
    total, activated = (sum(getattr(part, kind) for part in parts) for kind in ("total", "activated"))
    return (f"{total / 1e6:.2f} M parameters, {activated / 1e6:.2f} M of them used for a token, "
            f"{cost.cache_numbers(config.language)} cached numbers a token and layer")


def summary(
    name: str, plan: Plan, results: Mapping[str, dict], metrics: Mapping[str, list[dict]], lines: int = 50
) -> dict:
    """What lessons/ablations/ keeps of a comparison: of the metrics, averages over a fiftieth of the steps each."""
    how = {"course": plan.course, "steps": plan.steps, "sight": plan.sight, "batch": plan.batch, "seed": plan.seed}
    return {"question": ABLATIONS[name].question, **how, "variants": {
        variant: {"facts": facts(f"{name}: {variant}"), **results[variant], "metrics": averages(metrics[variant], lines)}
        for variant in results}}


def averages(metrics: list[dict], lines: int) -> list[dict]:
    """At most so many lines of metrics, each the mean of those it stands for, under the last one's step."""
    width = -(-len(metrics) // lines)
    return [mean(metrics[i : i + width]) for i in range(0, len(metrics), width)]


def mean(together: list[dict]) -> dict:
    losses = [pair for line in together for pair in line["abilities"].items()]
    experts = torch.tensor([line["experts"] for line in together]).mean(dim=0)
    return {
        "step": together[-1]["step"], "loss": round(fmean(line["loss"] for line in together), 4),
        "load": round(fmean(line["load"] for line in together), 3),
        "experts": [[round(x, 3) for x in layer] for layer in experts.tolist()],
        "abilities": mean_by_name([x for _, x in losses], [ability for ability, _ in losses]),
    }


def report(
    name: str, plan: Plan, results: Mapping[str, dict], metrics: Mapping[str, list[dict]], path: Path
) -> str:
    """The comparison of variants that were all trained by this plan: a picture at `path`, numbers beside it, words."""
    draw_comparison(f"{name}: {ABLATIONS[name].question}", results, metrics, path)
    path.with_suffix(".json").write_text(json.dumps(summary(name, plan, results, metrics)) + "\n")
    abilities = list(next(iter(results.values()))["scores"])
    widest = max(map(len, results))
    lines = [" " * 18 + "".join(f"{variant:>{widest + 2}}" for variant in results)]
    lines += [f"{ability:<18}" + "".join(f"{one['scores'][ability]:>{widest + 2}.0%}" for one in results.values())
              for ability in abilities]
    lines += [f"{variant}: {facts(f'{name}: {variant}')}" for variant in results]
    return "\n".join(lines)
