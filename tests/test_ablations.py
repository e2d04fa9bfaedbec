"""Tests of minivl2/training/ablations.py: every variant can be built and trained, and differs in what its name says."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from minivl2 import build, cost
from minivl2.config import Config
from minivl2.processor import Processor, ProcessorConfig
from minivl2.toyworld import GRIDS
from minivl2.training import ablations, curriculum, loop
from minivl2.training.tokenizer import sentences, train_tokenizer

VARIANTS = [f"{name}: {variant}" for name, ablation in ablations.ABLATIONS.items() for variant in ablation.variants]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(sentences(), Config.named("toy").language.vocab_size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_takes_a_step(variant, tokenizer):
    config, seeing = ablations.configurations(variant)
    plan = loop.Plan(steps=10, batch=2, dtype="float32", course=ablations.ABLATIONS[variant.partition(":")[0]].course)
    trainer = loop.Trainer(build(config), Processor(tokenizer, seeing), plan)
    measured = trainer.train_step(plan.lesson_at(0, trainer.processor))
    assert measured["loss"] > 0


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_the_first_variant_is_the_toy_itself_and_the_others_are_not(name):
    toy = Config.named("toy"), ProcessorConfig.of(Config.named("toy"))
    first, *others = [ablations.configurations(f"{name}: {variant}") for variant in ablations.ABLATIONS[name].variants]
    assert first == toy == ablations.configurations()
    assert others and all(other != toy for other in others)


@pytest.mark.parametrize("name", ["latent", "shared", "balance"])
def test_variants_are_about_as_large_as_the_toy(name):
    """Or else size, not the idea, might explain a difference."""
    sizes = []
    for variant in ablations.ABLATIONS[name].variants:
        with torch.device("meta"):
            model = build(ablations.configurations(f"{name}: {variant}")[0])
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert max(sizes) < 1.1 * min(sizes)


def test_without_tiles_a_picture_is_seen_in_one(tokenizer):
    config, seeing = ablations.configurations("tiles: global view only")
    stage = curriculum.COURSES[ablations.ABLATIONS["tiles"].course][0]
    for grid in set(GRIDS["text"]):
        samples = curriculum.pictures(0, 0, dataclasses.replace(stage, grids=(grid,)), 2)
        views, grids = Processor(tokenizer, seeing).tile(list(samples[0].images))
        assert len(views) == 2 and grids == [(1, 1)]


@dataclasses.dataclass(frozen=True)
class Inner:
    a: int = 1
    table: dict | None = None


@dataclasses.dataclass(frozen=True)
class Middle:
    left: Inner = dataclasses.field(default_factory=Inner)
    right: Inner = dataclasses.field(default_factory=lambda: Inner(2))
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    middle: Middle = dataclasses.field(default_factory=Middle)
    name: str = "outer"


def test_a_change_reaches_parts_and_leaves_the_rest():
    changed = ablations.changed(Config.named("toy"), {"language": {"n_routed_experts": 4}})
    assert changed.language.n_routed_experts == 4
    assert dataclasses.replace(changed, language=Config.named("toy").language) == Config.named("toy")


def test_a_change_reaches_parts_of_parts_and_leaves_their_siblings():
    changed = ablations.changed(Outer(), {"middle": {"left": {"a": 9}, "size": 0}, "name": ""})
    assert changed == Outer(Middle(Inner(9), Inner(2), 0), "")


def test_a_change_leaves_the_original_and_what_was_asked_for_as_they_were():
    config, changes = Outer(), {"middle": {"left": {"a": 9}}, "name": "new"}
    changed = ablations.changed(config, changes)
    assert config == Outer() and changes == {"middle": {"left": {"a": 9}}, "name": "new"}
    assert type(changed) is Outer and type(changed.middle) is Middle and changed.middle.right is config.middle.right


def test_changing_nothing_changes_nothing():
    assert ablations.changed(Outer(), {}) == ablations.changed(Outer(), {"middle": {}}) == Outer()


def test_a_change_of_what_does_not_exist_is_an_error():
    """Or else two equal models would be compared, and the idea found to be worth nothing."""
    for changes in ({"nmae": "x"}, {"middle": {"left": {"b": 1}}}, {"middle": {"name": "x"}}):
        with pytest.raises((TypeError, AttributeError)):
            ablations.changed(Outer(), changes)


def test_a_changed_configuration_is_checked_like_any_other():
    with pytest.raises(ValueError):
        ablations.changed(Config.named("toy"), {"language": {"num_experts_per_tok": 100}})


def test_a_comparison_is_a_picture_and_a_table(tmp_path):
    result = {"scores": {"read": 0.5, "line": 0.25}, "guess": {"read": 0.0, "line": 0.0}, "n": {"read": 8, "line": 8}}
    worse = {**result, "scores": {"read": 0.125, "line": 0.0}}
    lines = [{"step": 10 * i, "loss": 3 - i / 10, "load": 1.5, "experts": [[1.5, 0.5]], "abilities": {"read": 3 - i / 10}}
             for i in range(1, 20)]
    names = list(ablations.ABLATIONS["latent"].variants)
    results, metrics = dict(zip(names, (result, worse), strict=True)), dict.fromkeys(names, lines)
    text = ablations.report("latent", loop.Plan(190, course="things"), results, metrics, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["steps"] == 190 and written["course"] == "things"
    kept = written["variants"]["latent attention"]
    assert kept["scores"] == result["scores"] and kept["metrics"] == lines
    assert "50%" in text and "12%" in text
    assert "80 cached numbers a token and layer" in text and "256 cached" in text     # 64 + 16, and 2 * 4 heads * 32


def test_metrics_are_averaged_into_few_lines():
    lines = [{"step": 10 * i, "loss": float(i), "load": 1.0, "experts": [[float(i), 0.0]], "abilities": abilities}
             for i, abilities in enumerate([{"read": 2.0}, {"read": 4.0, "line": 1.0}, {"line": 5.0}], 1)]
    first, second = ablations.averages(lines, 2)
    assert first == {"step": 20, "loss": 1.5, "load": 1.0, "experts": [[1.5, 0.0]], "abilities": {"line": 1.0, "read": 3.0}}
    assert second == lines[2]
    assert ablations.averages(lines, 50) == lines


# ------------------------------------------------------------------------------------------ the findings

LESSONS = Path(__file__).resolve().parents[1] / "lessons"


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_the_findings_are_those_of_the_runs(name):
    """Every table of lessons/ablations.md, number by number, from the kept results."""
    kept = json.loads((LESSONS / f"ablations/{name}.json").read_text(encoding="utf-8"))
    assert list(kept["variants"]) == list(ablations.ABLATIONS[name].variants)
    section = (LESSONS / "ablations.md").read_text(encoding="utf-8").split(f"](ablations/{name}.png)")[1].split("\n## ")[0]
    header, _, *rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    assert header[-len(kept["variants"]):] == list(kept["variants"])
    told = {row[0]: row[1:] for row in rows}
    for ability in next(iter(kept["variants"].values()))["scores"]:
        assert told.pop(ability) == [f"{100 * one['scores'][ability]:.0f} %" for one in kept["variants"].values()]
    for variant, *also in zip(kept["variants"], *told.values(), strict=True):
        for what, number in zip(told, also, strict=True):
            if what.startswith("cached"):
                config, _ = ablations.configurations(f"{name}: {variant}")
                assert int(number) == cost.cache_numbers(config.language)
            else:
                assert what.startswith("busiest expert")
                loads = [line["load"] for line in kept["variants"][variant]["metrics"][-8:]]
                assert float(number) == round(sum(loads) / 8, 1)


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_the_kept_results_are_of_the_variants_as_they_are_now(name):
    kept = json.loads((LESSONS / f"ablations/{name}.json").read_text(encoding="utf-8"))
    for variant, one in kept["variants"].items():
        assert one["facts"] == ablations.facts(f"{name}: {variant}")
        assert all(count == 200 for count in one["n"].values())
