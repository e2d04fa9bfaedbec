"""Training: what is shown when, how it steps, how it is saved, and how it is scored."""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minivl2
import train_tiny
from minivl2 import toyworld
from minivl2.config import Config, ProjectorConfig, VisionConfig
from minivl2.conversation import END
from minivl2.processor import Processor, ProcessorConfig
from minivl2.toyworld import Question
from minivl2.toyworld.things import COLOURS, DIAMETER, SHAPES
from minivl2.training import curriculum, evaluation, guidance, loop, optimizers, report
from minivl2.training.evaluation import Answered
from minivl2.training.tokenizer import sentences, train_tokenizer

SENTENCES = [turn["content"] for i in range(300) for turn in toyworld.draw(i).conversation()]


def small_config(**changes) -> Config:
    """The toy, smaller still."""
    toy = Config.named("toy")
    language = dataclasses.replace(
        toy.language, hidden_size=32, intermediate_size=48, num_hidden_layers=3, kv_lora_rank=12, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8, moe_intermediate_size=16, n_routed_experts=4, **changes)
    return dataclasses.replace(
        toy, vision=VisionConfig(image_size=56, patch_size=8, width=32, layers=1, heads=2, mlp_ratio=2.0),
        projector=ProjectorConfig(input_dim=32, n_embed=32), language=language)


def make(steps=6, dtype="float32", seed=0, course="short", **changes) -> loop.Trainer:
    torch.manual_seed(seed)
    config = small_config(**changes)
    processor = Processor(train_tokenizer(SENTENCES, config.language.vocab_size), ProcessorConfig.of(config))
    return loop.Trainer(minivl2.build(config), processor, loop.Plan(steps=steps, batch=3, dtype=dtype, course=course))


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in trainer.model.state_dict().items()}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# the tokenizer


def test_the_tokenizer_is_the_same_each_time_and_loses_nothing():
    first, second = (train_tokenizer(SENTENCES, 512) for _ in range(2))
    assert first.to_str() == second.to_str()
    for text in [*SENTENCES[:100], "Grüße, 12 K7Q!"]:
        assert first.decode(first.encode(text).ids, skip_special_tokens=False) == text


def test_digits_and_capitals_stay_single():
    tokenizer = train_tokenizer([*SENTENCES, "4711 KLM"] * 5, 512)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("4711KLM").ids] == list("4711KLM")


def test_a_name_is_one_token_wherever_it_stands():
    """The same word begins an answer and follows other words. In pieces it would be a puzzle, not a name."""
    tokenizer = train_tokenizer(sentences(1500), Config.named("toy").language.vocab_size)
    for word in (*COLOURS, *SHAPES, *DIAMETER):
        assert tokenizer.encode(word).tokens == [word] and len(tokenizer.encode(" " + word).ids) == 1
    assert len(tokenizer.encode("\n\n").ids) == 1


# the curriculum


def test_a_batch_is_fixed_by_seed_and_step_alone():
    trainer = make()
    one, again, other = (trainer.plan.lesson_at(step, trainer.processor).batch for step in (3, 3, 4))
    assert torch.equal(one.input_ids, again.input_ids) and torch.equal(one.tiles, again.tiles)
    assert one.input_ids.shape != other.input_ids.shape or not torch.equal(one.input_ids, other.input_ids)


def test_a_batch_holds_pictures_of_one_grid_only():
    for step in range(20):
        grids = {sample.grid for sample in curriculum.pictures(0, step, curriculum.COURSES["short"][-1], 4)}
        assert len(grids) == 1


@pytest.mark.parametrize("course", curriculum.COURSES.values(), ids=curriculum.COURSES)
def test_each_kind_comes_as_often_as_the_stage_says_however_few_its_grids(course):
    for stage in course:
        shares = curriculum.kinds_by_grid(stage)
        for kind, share in stage.kinds.items():
            assert sum(kinds.get(kind, 0.0) for kinds in shares.values()) == pytest.approx(share)
            own = [grid for grid in toyworld.GRIDS[kind] if grid in stage.grids]
            often = {grid: own.count(grid) * stage.oftener.get(kind, {}).get(grid, 1) for grid in own}     # some stand twice
            assert set(stage.oftener.get(kind, {})) <= set(own)
            for grid in own:
                assert shares[grid][kind] == pytest.approx(share * often[grid] / sum(often.values()))


def test_what_is_drawn_keeps_to_these_shares(monkeypatch):
    monkeypatch.setattr(curriculum, "picture", lambda seed, kind, grid, things: kind)
    stage = curriculum.Stage(1.0, {"scenes": 1, "tables": 3}, curriculum.ALL)
    drawn = [kind for step in range(1000) for kind in curriculum.pictures(0, step, stage, 8)]
    assert drawn.count("tables") / len(drawn) == pytest.approx(3 / 4, abs=0.05)


def test_a_scene_has_no_more_things_than_the_stage_allows():
    stage = curriculum.Stage(1.0, {"scenes": 1, "grounding": 1}, ((1, 1),), things=2)
    counts = {len(sample.facts.things) for step in range(10) for sample in curriculum.pictures(0, step, stage, 4)}
    assert counts == {1, 2}


def test_a_team_shares_a_batch_without_gap_or_overlap():
    trainer = make()
    stage = curriculum.COURSES["short"][0]
    whole = curriculum.lesson(trainer.processor, 0, 5, stage, 4)
    parts = [curriculum.lesson(trainer.processor, 0, 5, stage, 4, rank, team=2) for rank in range(2)]

    def lines(batch):
        return [row[mask].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert lines(whole.batch)[0::2] == lines(parts[0].batch) and lines(whole.batch)[1::2] == lines(parts[1].batch)


def test_every_token_of_an_answer_knows_which_ability_it_belongs_to():
    processor, stage = make().processor, curriculum.COURSES["whole"][-1]
    for step in range(10):
        whole = curriculum.lesson(processor, 0, step, stage, 3)
        alone = [curriculum.lesson(processor, 0, step, stage, 3, rank, team=3) for rank in range(3)]
        assert whole.abilities == [ability for part in alone for ability in part.abilities]
        for sample, (batch, abilities, *_) in zip(curriculum.pictures(0, step, stage, 3), alone, strict=True):
            ids = batch.labels[:, 1:][batch.learned].tolist()
            for ability in set(abilities):
                said = processor.tokenizer.decode(
                    [i for i, a in zip(ids, abilities, strict=True) if a == ability], skip_special_tokens=False)
                answers = [q.answer for q in sample.questions if q.ability == ability]
                assert any(said.startswith(answer + END) for answer in answers), (said, answers)


def test_stages_follow_each_other():
    stages = (curriculum.Stage(0.5, {"scenes": 1}, ((1, 1),)), curriculum.Stage(1.0, {"text": 1}, ((2, 1),)))
    seen = [curriculum.stage_at(p, stages) for p in (0.0, 0.49, 0.5, 0.99, 1.0)]
    assert seen == [stages[0], stages[0], stages[1], stages[1], stages[1]]


@pytest.mark.parametrize("course", curriculum.COURSES.values(), ids=curriculum.COURSES)
def test_a_course_lasts_to_the_end_and_can_draw_what_it_shows(course):
    ends = [stage.until for stage in course]
    assert ends == sorted(ends) and ends[-1] == 1.0
    for stage in course:
        for grid in stage.grids:
            assert any(grid in toyworld.GRIDS[kind] for kind in stage.kinds), grid


@pytest.mark.parametrize("kind", ["scenes", "grounding", "tables", "charts"])
def test_what_lists_everything_is_asked_for_alone(kind):
    """In a third of the conversations. Before or after the rest, one would be told by the other."""
    rng, processor, alone = random.Random(0), make().processor, 0
    samples = [toyworld.draw(i, kind, (2, 1)) for i in range(200)]
    samples = [sample for sample in samples if any(question.ability in curriculum.LISTS for question in sample.questions)]
    for sample in samples:
        assert not {question.ability for question in curriculum.interview(processor, sample, rng, 0)} & {*curriculum.LISTS}
        asked = curriculum.interview(processor, sample, rng)
        lists = [question.ability in curriculum.LISTS for question in asked]
        assert asked and any(lists) == all(lists)
        alone += all(lists)
    assert 0.23 < alone / len(samples) < 0.43


@pytest.mark.parametrize("kind", ["tables", "charts", "documents", "text"])
def test_no_question_comes_after_one_that_tells_its_answer(kind):
    rng, processor = random.Random(0), make().processor
    met, first = set(), set()
    for i in range(50):
        asked = [question.ability for question in curriculum.interview(processor, toyworld.draw(i, kind), rng)]
        from_values = [ability in curriculum.DERIVED for ability in asked]
        assert from_values == sorted(from_values, reverse=True)
        assert asked and not any(set(asked).issuperset(rivals) for rivals in curriculum.RIVALS)
        met.update(asked)
        first.add(asked[0])
    assert first == met                 # and each is asked with nothing told, as one who asks a single question does
    assert met == {question.ability for i in range(50) for question in toyworld.draw(i, kind).questions}


@pytest.mark.parametrize("kind", ["scenes", "grounding"])
def test_of_every_ability_one_question_comes_before_any_second(kind):
    """Or what there are many questions of, colours, would leave no room for what there are few of, counting."""
    rng, processor, seconds = random.Random(0), make().processor, 0
    for i in range(50):
        asked = [question.ability for question in curriculum.interview(processor, toyworld.draw(i, kind), rng)]
        nth = [asked[:k].count(ability) for k, ability in enumerate(asked)]
        assert nth == sorted(nth)
        seconds += any(nth)
    assert seconds


# the paper's recipe


PAPER = curriculum.COURSES["paper"]


def test_packing_keeps_every_token_and_fills_sequences():
    processor, stage = make().processor, dataclasses.replace(PAPER[1], told=0.0, all_text=False, packed=0)
    apart = curriculum.lesson(processor, 0, 3, stage, 6)
    together = curriculum.lesson(processor, 0, 3, dataclasses.replace(stage, packed=400), 6)
    assert len(together.batch) < len(apart.batch) and together.batch.input_ids.shape[1] <= 400

    def tokens(batch, mask):
        return sorted(batch.input_ids[:, 1:][mask].tolist())
    assert tokens(together.batch, together.batch.learned) == tokens(apart.batch, apart.batch.learned)
    assert sorted(together.abilities) == sorted(apart.abilities)
    assert together.batch.attention_mask.sum() == apart.batch.attention_mask.sum()
    assert torch.equal(together.batch.image_mask.sum(), apart.batch.image_mask.sum())


def test_pictures_stay_with_their_conversations_when_packed():
    """The visual tokens of a line are those of its conversations, in their order."""
    trainer = make()
    stage = dataclasses.replace(PAPER[1], told=0.3, packed=400)
    alone = curriculum.lesson(trainer.processor, 0, 3, dataclasses.replace(stage, packed=0), 6).batch
    packed = curriculum.lesson(trainer.processor, 0, 3, stage, 6).batch
    with torch.no_grad():
        apart, together = (trainer.model.embed(batch)[batch.image_mask] for batch in (alone, packed))
    assert apart.shape == together.shape
    torch.testing.assert_close(apart.sum(1).sort().values, together.sum(1).sort().values)


def test_the_second_stage_learns_all_text_and_the_third_only_answers():
    processor = make().processor
    everything = curriculum.lesson(processor, 0, 1, dataclasses.replace(PAPER[1], packed=0), 6)
    learned = everything.batch.labels != -100
    assert torch.equal(learned & everything.batch.attention_mask,
                       everything.batch.attention_mask & ~everything.batch.image_mask)
    assert set(everything.abilities) == {"text"}
    answers = curriculum.lesson(processor, 0, 1, PAPER[2], 6)
    assert len(answers.abilities) == answers.batch.learned.sum() < len(everything.abilities)


def test_a_told_picture_is_a_caption_a_question_and_no_image():
    processor, stage = make().processor, dataclasses.replace(PAPER[1], told=1.0, packed=0)
    batch, *_ = curriculum.lesson(processor, 0, 1, stage, 3)
    assert len(batch.tiles) == len(batch.grids) == batch.image_mask.sum() == 0
    talk, abilities, images = curriculum.in_words(toyworld.draw(5, "scenes"), random.Random(0))
    told, answer = (turn["content"] for turn in talk)
    questions = {q.text: q for q in toyworld.draw(5, "scenes").questions}
    caption, asked = told.split(". ", 1)
    assert caption in {q.answer for q in questions.values()} and questions[asked].answer == answer
    assert abilities == [questions[asked].ability] and images == ()


def test_the_papers_rates_over_its_three_stages():
    plan = loop.Plan(steps=1000, course="paper")
    rates = [plan.rate_at(step) for step in range(1000)]
    first, second, third = rates[:150], rates[150:850], rates[850:]
    assert max(first) == pytest.approx(1, abs=0.01) and first[-1] < 0.1         # one cosine
    assert second == pytest.approx([1.0] * 350 + [10**-0.5] * 175 + [0.1] * 175)
    assert third == pytest.approx([3.0e-5 / 5.4e-4] * 150)


def test_polishing_is_gentle():
    plan = loop.Plan(steps=1000, course="polish")
    rates = [plan.rate_at(step) for step in range(1000)]
    assert max(rates) == pytest.approx(0.5, abs=0.001) and rates.index(max(rates)) == 20 and rates[-1] < 0.03


def test_the_vision_tower_learns_at_a_tenth_of_the_rate():
    trainer = make(course="paper")
    optimizer, = trainer.learner.optimizers
    names = {p: name for name, p in trainer.model.named_parameters()}
    rates = {names[p]: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(names.values())
    assert {rate for name, rate in rates.items() if name.startswith("vision.")} == {optimizers.ADAMW_RATE / 10}
    assert {rate for name, rate in rates.items() if not name.startswith("vision.")} == {optimizers.ADAMW_RATE}
    assert optimizer.defaults["betas"] == (0.9, 0.95) and optimizer.defaults["weight_decay"] == 0.1


def test_the_language_model_waits_while_the_eye_is_aligned():
    trainer = make(steps=100, course="paper")
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    run_to(trainer, 2)
    changed = {name.split(".")[0] for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert "decoder" not in changed and {"vision", "projector"} <= changed


@pytest.mark.parametrize("course, moves", [("short", True), ("paper", False)])
def test_in_the_papers_first_stage_the_correction_bias_stands_still(course, moves):
    trainer = make(course=course, topk_method="noaux_tc", scoring_func="sigmoid")
    trainer.train_step(trainer.plan.lesson_at(0, trainer.processor))
    assert trainer.model.decoder.layers[1].mlp.gate.bias.any() == moves


# a step


def test_every_parameter_is_stepped_by_exactly_one_optimizer():
    trainer = make()
    held = [p for optimizer in trainer.learner.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(trainer.model.parameters())


def test_the_rate_rises_then_falls():
    values = [optimizers.rate(i / 100) for i in range(101)]
    top = values.index(max(values))
    assert values[0] == 0 and max(values) == pytest.approx(1, abs=1e-3) and values[-1] == pytest.approx(optimizers.LOWEST)
    assert values[: top + 1] == sorted(values[: top + 1]) and values[top:] == sorted(values[top:], reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_a_few_pictures_by_heart(dtype):
    """If this fails, the whole training can only fail: the first thing to try with any model."""
    trainer = make(steps=120, dtype=dtype)
    batch = trainer.plan.lesson_at(0, trainer.processor)
    losses = [trainer.train_step(batch)["loss"] for _ in range(120)]
    assert losses[-1] < 0.3 * losses[0]


def test_in_bfloat16_the_weights_themselves_stay_float32():
    trainer = make(dtype="bfloat16")
    trainer.train_step(trainer.plan.lesson_at(0, trainer.processor))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert {p.dtype for p in trainer.learner.working.parameters()} == {torch.bfloat16}
    for own, worked in zip(trainer.model.parameters(), trainer.learner.working.parameters(), strict=True):
        assert torch.equal(own.bfloat16(), worked)


def test_the_correction_bias_moves_by_its_step_toward_balance():
    trainer = make(topk_method="noaux_tc", scoring_func="sigmoid")
    gate = trainer.model.decoder.layers[1].mlp.gate
    before = gate.bias.clone()
    batch = trainer.plan.lesson_at(0, trainer.processor)
    with guidance.listening(trainer.model, batch.told, trainer.plan.guidance_at(0)):
        experts = trainer.model.loss(batch.batch).routings[0].experts
    trainer.train_step(batch)
    load = experts.flatten().bincount(minlength=4).float()
    torch.testing.assert_close(gate.bias - before, 0.001 * (load.mean() - load).sign())


def test_a_loss_that_is_not_a_number_stops_and_names_the_batch():
    trainer = make()
    with torch.no_grad():
        trainer.model.decoder.head.weight.fill_(float("nan"))
    with pytest.raises(loop.TrainingError, match=r"step 0 \(seed 0\)"):
        trainer.train_step(trainer.plan.lesson_at(0, trainer.processor))


# saving and resuming


def run_to(trainer, step):
    while trainer.step < step:
        trainer.train_step(trainer.plan.lesson_at(trainer.step, trainer.processor))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, dtype):
    undisturbed = make(dtype=dtype)
    run_to(undisturbed, 6)
    killed = make(dtype=dtype)
    run_to(killed, 3)
    killed.save(tmp_path)
    loop.write_plan(killed.plan, tmp_path)
    resumed = loop.Trainer.resume(tmp_path)
    assert resumed.step == 3
    run_to(resumed, 6)
    assert_same(weights(undisturbed), weights(resumed))


def test_a_checkpoint_is_in_the_published_layout(tmp_path):
    trainer = make()
    run_to(trainer, 1)
    trainer.save(tmp_path)
    model, processor = minivl2.load(tmp_path / "step-000001")
    assert_same(dict(model.state_dict()), weights(trainer))
    assert minivl2.verify(tmp_path / "step-000001") == []
    assert processor.tokenizer.to_str() == trainer.processor.tokenizer.to_str()


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = make()
    run_to(trainer, 1)
    trainer.save(tmp_path)
    run_to(trainer, 2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(loop, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        trainer.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert loop.checkpoints(tmp_path) == [tmp_path / "step-000001"]


def test_a_run_logs_and_keeps_the_two_newest_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    trainer = make()
    loop.write_plan(trainer.plan, tmp_path)
    loop.run_all(trainer, tmp_path)
    lines = loop.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["load"] >= 1 and line["loss"] > 0 for line in lines)
    assert [p.name for p in loop.checkpoints(tmp_path)] == ["step-000005", "step-000006"]
    assert json.loads((tmp_path / "plan.json").read_text())["ran_on"]["torch"] == torch.__version__
    assert loop.read_metrics(tmp_path, up_to=4) == lines[:2]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.state", "config.json", "progress.json"])
@pytest.mark.parametrize("how", ["cut", "altered"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(tmp_path, capsys, file, how):
    trainer = make()
    loop.write_plan(trainer.plan, tmp_path)
    for step in (1, 2):
        run_to(trainer, step)
        trainer.save(tmp_path)
    damaged = tmp_path / "step-000002" / file
    content = bytearray(damaged.read_bytes())
    damaged.write_bytes(content[: len(content) // 2] if how == "cut" else content[:-30] + bytes(20) + content[-10:])
    assert loop.Trainer.resume(tmp_path).step == 1
    assert "step-000002 is damaged" in capsys.readouterr().err


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path):
    with pytest.raises(loop.TrainingError, match=r"no plan\.json"):
        loop.Trainer.resume(tmp_path)
    loop.write_plan(make().plan, tmp_path)
    with pytest.raises(loop.TrainingError, match="no checkpoint to resume"):
        loop.Trainer.resume(tmp_path)


# scores


def answered(wanted: str, given: str, ability="box") -> Answered:
    return Answered(toyworld.draw(0, "grounding"), Question(ability, "?", wanted, 0.25), given)


ONE_BOX = "<|ref|>it<|/ref|><|det|>[[100, 100, 200, 200]]<|/det|>"


@pytest.mark.parametrize("given, right, overlap", [
    (ONE_BOX, True, 1.0),
    (ONE_BOX.replace("100, 100, 200", "120, 100, 200"), True, 0.8),
    (ONE_BOX.replace("100, 100, 200", "160, 100, 200"), False, 0.4),
    (ONE_BOX.replace("it<", "that<"), False, 1.0),
    (ONE_BOX.replace("]]", "], [0, 0, 9, 9]]"), False, 0.5),
    ("none", False, 0.0),
])
def test_a_box_is_right_when_it_overlaps_by_more_than_half(given, right, overlap):
    one = answered(ONE_BOX, given)
    assert one.right is right and one.overlap == pytest.approx(overlap)


def test_where_no_box_is_asked_for_only_the_same_text_is_right():
    assert answered("none", "none").right and not answered("none", ONE_BOX).right and answered("none", "x").overlap is None


def test_scores_stand_beside_the_guess():
    result = evaluation.scores([answered("3", "3", "count"), answered("3", "4", "count"), answered(ONE_BOX, ONE_BOX)])
    assert result == {"scores": {"count": 0.5, "box": 1.0}, "guess": {"count": 0.25, "box": 0.25},
                      "n": {"count": 2, "box": 1}, "mean_iou": 1.0, "iou_50": 1.0}
    assert "50%" in evaluation.table(result)


def test_scores_are_told_by_grid_from_few_tiles_to_many():
    def on(grid, wanted, given):
        sample = dataclasses.replace(toyworld.draw(0, "scenes"), grid=grid)
        return Answered(sample, Question("count", "?", wanted), given)
    told = evaluation.table_by_grid([
        on((2, 2), "3", "3"), on((3, 1), "1", "2"), on((1, 2), ONE_BOX, ONE_BOX), on((1, 2), "1", "2")])
    assert [line.split() for line in told.splitlines()[1:]] == [
        ["1", "x", "2", "50%", "2", "1.00"], ["3", "x", "1", "0%", "1"], ["2", "x", "2", "100%", "1"]]


def test_it_is_never_tested_on_a_picture_it_was_trained_on():
    asked = evaluation.questions(seed=0, per_ability=5, kinds=("scenes",))
    tested = {sample.images[0].tobytes() for sample, _ in asked}
    stage = curriculum.COURSES["short"][0]
    trained = {s.images[0].tobytes() for step in range(100) for s in curriculum.pictures(0, step, stage, 8)}
    assert len(tested) > 5 and not tested & trained


def test_each_question_is_asked_alone():
    """A caption earlier in the conversation would give the count away."""
    trainer = make()
    seen = []
    original = trainer.processor.__class__.__call__
    asked = evaluation.questions(seed=3, per_ability=2, kinds=("scenes",))

    class Watched(Processor):
        def __call__(self, messages, *args, **kwargs):
            seen.append(messages)
            return original(self, messages, *args, **kwargs)
    watched = Watched(trainer.processor.tokenizer, trainer.processor.config)
    evaluation.LONGEST_ANSWER, kept = 2, evaluation.LONGEST_ANSWER
    try:
        results = evaluation.answer_all(trainer.model.eval(), watched, asked)
    finally:
        evaluation.LONGEST_ANSWER = kept
    assert len(results) == len(asked) == len(seen)
    assert all(len(messages) == 1 and messages[0]["role"] == "user" for messages in seen)


# the report


def test_the_report_draws_curves_and_a_sheet(tmp_path):
    metrics = [{"step": i, "loss": 5 / (i + 1), "load": 1.5, "experts": [[0.5, 1.5], [1.0, 1.0]],
                "abilities": {"count": 1.0, "colour": i / 20} if i % 2 else {"box": 2.0}} for i in range(20)]
    report.draw_curves(metrics, tmp_path / "curves.png")
    report.draw_sheet([answered(ONE_BOX, ONE_BOX), answered("3", "$4 <b>", "count")], tmp_path / "sheet.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000 and (tmp_path / "sheet.png").stat().st_size > 5000


# the script


def test_the_script_trains_saves_scores_and_resumes(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "train_tiny.py", "--steps", "3", "--sight", "2", "--batch", "2", "--per-ability", "1",
               "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "On pictures it has never seen" in done.stdout
    for name in ("curves.png", "sheet.png", "scores.json", "plan.json", "metrics.jsonl", "model/config.json"):
        assert (run / name).exists(), name
    assert minivl2.verify(run / "model") == []
    first = load_file(run / "model" / "model.safetensors")

    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "resumed at step 3" in done.stdout
    again = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_training_further_begins_with_the_weights_that_are_there(tmp_path, monkeypatch):
    trainer = make()
    minivl2.save(trainer.model, trainer.processor, tmp_path / "before")
    monkeypatch.setattr(loop.Plan, "see", lambda *_: pytest.fail("it can see already"))
    plan = loop.measured(loop.Plan(0, batch=2, start=str(tmp_path / "before")), 0.05, trainer.model, trainer.processor)
    assert plan.steps > 0 and plan.sight == 0
    further = train_tiny.begin(plan, "")
    assert_same(weights(further), weights(trainer))
    further.train_step(plan.lesson_at(0, further.processor))
    assert_same(dict(minivl2.load(tmp_path / "before")[0].state_dict()), weights(trainer))      # the file is untouched


def test_where_no_checkpoint_is_none_can_be_trained_further(tmp_path, monkeypatch, capsys):
    for arguments, said in ((["--from", str(tmp_path)], "no checkpoint"),
                            (["--from", "weights/toy", "--ablate", "latent"], "in their own way")):
        monkeypatch.setattr(sys, "argv", ["train_tiny.py", *arguments])
        with pytest.raises(SystemExit):
            train_tiny.read_options()
        assert said in capsys.readouterr().err


def test_under_torchrun_no_option_is_taken_for_one_of_its_own():
    """torchrun reads the whole line, and a beginning of one of its options' names counts as that option."""
    from torch.distributed.run import get_args_parser
    theirs = [name for action in get_args_parser()._actions for name in action.option_strings]
    ours = re.findall(r'add_argument\("(--[a-z-]+)"', Path(train_tiny.__file__).read_text())
    assert len(ours) > 10 and "--from" in ours
    assert [(name, other) for name in ours for other in theirs if other.startswith(name)] == []


@pytest.mark.parametrize("moment", ["plan.json", "step-000000", "step-000002"])
def test_killed_at_any_moment_it_resumes_to_the_weights_of_an_undisturbed_run(tmp_path, moment):
    """Killed while it learns to see, before the first step, and later."""
    often = "from minivl2.training import loop; loop.SAVE_EVERY = 0; import train_tiny; train_tiny.main()"
    settings = ["--steps", "12", "--sight", "3", "--batch", "2", "--per-ability", "1", "--dtype", "float32", "--out"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    process = subprocess.Popen([sys.executable, "-c", often, *settings, str(killed)])
    while not (killed / moment).exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "model").exists()
    for out, more in ((killed, ["--resume"]), (undisturbed, [])):
        subprocess.run([sys.executable, "train_tiny.py", *settings, str(out), *more], check=True, timeout=300)
    first, second = (load_file(out / "model" / "model.safetensors") for out in (killed, undisturbed))
    assert_same(first, second)


@pytest.mark.parametrize("team", [1, 2, 3])
def test_a_team_draws_each_picture_once(team):
    stage = curriculum.COURSES["whole"][-1]
    drawn = curriculum.pictures(5, 7, stage, 6)
    parts = [curriculum.pictures(5, 7, stage, 6, rank, team) for rank in range(team)]
    assert sum(len(part) for part in parts) == 6
    assert all(parts[i % team][i // team].questions == sample.questions for i, sample in enumerate(drawn))


def test_two_processes_learn_what_one_learns(tmp_path):
    """Half of each batch each, averaged: the same losses as one process with the whole batch, step by step."""
    every_step = "from minivl2.training import loop; loop.LOG_EVERY = 1; import train_tiny; train_tiny.main()"
    script = [sys.executable, "-c", every_step,
              "--steps", "20", "--batch", "4", "--per-ability", "1", "--dtype", "float32", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    single_threaded = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in ([*script, str(tmp_path / "one")], [*torchrun, *script, str(tmp_path / "two")]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=single_threaded)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("On pictures it has never seen") == 1      # said by one of them
    alone, together = (loop.read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in alone] == [line["step"] for line in together] == list(range(1, 21))
    for a, b in zip(alone, together, strict=True):
        assert [a["loss"], a["balance"]] == pytest.approx([b["loss"], b["balance"]], abs=1e-5)
