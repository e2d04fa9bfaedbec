"""The training loop, and how it is saved so that it can be resumed to the same weights.

Lesson   lessons/08_training.ipynb, lessons/12_what_each_idea_buys.ipynb
Tests    tests/test_training.py, tests/test_loop.py

A run is a folder:

    plan.json          all that decides the run, and what it ran on
    metrics.jsonl      a line every few steps
    step-000400/       the newest checkpoints: the published layout, plus optimizer.state and progress.json
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from minivl2.experts import Routing
from minivl2.files import written_whole
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.training import contrast, guidance, noticing, optimizers, shard, sharper, shown, sight, team
from minivl2.training.curriculum import COURSES, Lesson, Stage, lesson, stage_at
from minivl2.weights import load, write_checkpoint

DTYPES = ("bfloat16", "float32")
SEEING = 0.35           # of the time goes into learning to see
LOG_EVERY = 10          # steps
SAVE_EVERY = 60         # seconds
KEPT = 2                # checkpoints: should the newest turn out to be damaged, there is one before it
PROGRESS = "progress.json"
ASKING = "asking."       # before the names of what noticing.py asks with, in the optimisers' file
OPTIMIZER = "optimizer.state"       # a safetensors file; the ending *.safetensors would make it part of the weights


class TrainingError(RuntimeError):
    """Training cannot go on. The last checkpoint is untouched."""


@dataclass(frozen=True)
class Plan:
    """With the same plan, the same machine trains the same weights."""

    steps: int
    seed: int = 0
    batch: int = 16             # pictures per step
    dtype: str = "bfloat16"     # of the forward and backward pass; what is learned is kept in float32
    sight: int = 0              # steps of learning to see, before these
    course: str = "short"       # which pictures when, by its name in curriculum.COURSES
    variant: str = ""           # of the toy, by its name in ablations.py
    start: str = ""             # the checkpoint that is trained further; none: random weights
    deeper: int = 0             # so many layers more for its vision tower, before anything
    closer: int = 0             # so many more for its decoder
    latent: int = 0             # and so long its latents, if not as they are

    def see(self, model: DeepSeekVL2, processor: Processor, steps: int, show: bool = True) -> None:
        """Teach the model to see, before the steps."""
        if self.course == "paper":
            contrast.learn(model, processor, self.seed, steps, self.dtype, show)
        elif self.start:
            sharper.learn(model, processor, self.seed, steps, self.dtype, show)
        else:
            read = any(kind in shown.WRITTEN for stage in COURSES[self.course] for kind in stage.kinds)
            lessons = shown.LESSONS if read else shown.NO_LETTERS
            sight.learn(model, processor, self.seed, steps, self.dtype, show, lessons)

    def stage_at(self, step: int) -> Stage:
        return stage_at(step / self.steps, COURSES[self.course])

    def rate_at(self, step: int) -> float:
        """The fraction of the full learning rate."""
        course, progress = COURSES[self.course], step / self.steps
        now = self.stage_at(step)
        if now.rate is None:
            return optimizers.rate(progress)
        began = max((stage.until for stage in course if stage.until < now.until), default=0.0)
        return now.rate((progress - began) / (now.until - began))

    def guidance_at(self, step: int) -> float:
        """How much of the attention that is told where to look is laid there: all of it at first, then less and less."""
        until = self.stage_at(step).guided * self.steps
        return max(0.0, 1 - step / until) if until else 0.0

    def lesson_at(self, step: int, processor: Processor) -> Lesson:
        """This process's part of what is learned from in this step."""
        return lesson(processor, self.seed, step, self.stage_at(step), self.batch, team.rank(), team.size())


class Trainer:
    """Steps a model. `step` counts the steps taken.

    `divided`, one of shard.WAYS, has each process keep a part of the model. It is no part of the plan: the losses are the
    same, and so is what is saved, so a run may go on with any number of processes, divided or not.
    """

    def __init__(self, model: DeepSeekVL2, processor: Processor, plan: Plan, divided: str = ""):
        if plan.batch % team.size():
            raise TrainingError(f"{plan.batch} pictures cannot be shared evenly by {team.size()} processes")
        self.model, self.processor, self.plan = model.train(), processor, plan
        recipe = optimizers.paper if plan.course == "paper" else optimizers.fast
        dtype = getattr(torch, plan.dtype)
        if divided:
            shard.divide(model, dtype, divided)
            dtype = torch.float32
        self.learner = optimizers.Learner(model, dtype, recipe(model))
        # Heads that are thrown away (noticing.py). As small as they are, each process keeps them whole.
        self.asking: optimizers.Learner | None = None
        if any(stage.noticing for stage in COURSES[plan.course]):
            with torch.random.fork_rng():
                torch.manual_seed(plan.seed)
                self.asking = optimizers.Learner(noticing.Noticing(model.config.language.hidden_size), torch.float32)
        self.step = 0

    def train_step(self, lesson: Lesson) -> dict[str, Any]:
        """One step of both optimisers. Returns what to log. Raises TrainingError if the loss is not a number."""
        batch, abilities, where, known = lesson
        stage, rate = self.plan.stage_at(self.step), self.plan.rate_at(self.step)
        self.learner.freeze(stage.frozen)
        # Each process averages over its own answers; weighted by how many those are, the team's mean is that of all.
        # Asked before the work, while all are here: afterwards the faster would wait for the slower once more.
        answers = batch.learned.sum()
        share = answers * team.size() / team.total(answers.clone())
        with (guidance.listening(self.learner.working, where, self.plan.guidance_at(self.step)) as heard,
              noticing.overheard(self.learner.working) as left):
            loss = self.learner.working.loss(batch)
        told = asked = torch.zeros(())
        if where:
            told = guidance.loss(heard, where) + guidance.fetched_loss(self.learner.working, heard, where, batch)
        if known:
            asked = noticing.loss(self.asking.working, left, known)
        ((share - 1) * loss.text + loss.total + stage.looking * told + stage.noticing * asked).backward()
        text, balance = team.total(torch.stack((share * loss.text, loss.balance)).detach().double()) / team.size()
        if not (text + balance).isfinite():
            raise TrainingError(f"the loss of step {self.step} (seed {self.plan.seed}) is {text.item()}")
        norm = self.learner.step(rate)
        if known:
            self.asking.step(rate)
        self._balance(loss.routings, stage.bias_step)
        self.learner.hand_out()
        self.step += 1
        return {
            "step": self.step, "loss": text.item(), "balance": balance.item(), "gradient": norm,
            "rate": rate, "load": heaviest_load(loss.routings),
            "experts": [[round(n, 3) for n in relative_load(routing)] for routing in loss.routings],
            "abilities": mean_by_name(loss.each.tolist(), abilities),
        }

    def _balance(self, routings: list[Routing], step: float) -> None:
        """Where the gate has a correction bias, move it toward balance."""
        gates = [layer.mlp.gate for layer in self.model.decoder.layers if hasattr(layer.mlp, "gate")]
        for gate, routing in zip(gates, routings, strict=True):
            if hasattr(gate, "bias"):
                gate.step_bias(team.total(routing.load), step)

    def whole(self) -> DeepSeekVL2:
        """The model; if it is divided, gathered in the first process. All of the team must ask."""
        return shard.collect_model(self.model) if shard.is_divided(self.model) else self.model

    def save(self, run: Path) -> None:
        """A new checkpoint folder, by one rename; then the older ones go. A kill at any moment leaves a whole one.

        All of a team must ask; the first process writes.
        """
        model, state = self.whole(), self.learner.state()
        if shard.is_divided(self.model):
            state = shard.collect(state)
        if self.asking:
            kept = self.asking.module.state_dict() | self.asking.state()
            state |= {ASKING + name: value for name, value in kept.items()}
        folder = run / f"step-{self.step:06}"
        if team.rank() > 0 or folder.exists():
            return
        with written_whole(folder) as staged:
            write_checkpoint(model, self.processor, staged)
            save_file(state, staged / OPTIMIZER)
            (staged / PROGRESS).write_text(json.dumps({"step": self.step, "sha256": digests(staged)}))
        for older in checkpoints(run)[:-KEPT]:
            shutil.rmtree(older)

    @classmethod
    def resume(cls, run: Path, divided: str = "") -> Trainer:
        """As it was when the newest checkpoint that can be read was written."""
        plan = read_plan(run)
        for folder in reversed(checkpoints(run)):
            try:
                return cls._read(folder, plan, divided)
            except (TrainingError, ValueError, OSError, KeyError, SafetensorError) as problem:
                print(f"{folder} is damaged ({problem}); trying the one before it", file=sys.stderr)
        raise TrainingError(f"{run} holds no checkpoint to resume from")

    @classmethod
    def _read(cls, folder: Path, plan: Plan, divided: str) -> Trainer:
        progress = json.loads((folder / PROGRESS).read_text())
        damaged = [name for name, digest in digests(folder).items() if digest != progress["sha256"].get(name)]
        if damaged:
            raise TrainingError(f"not what was written: {', '.join(damaged)}")
        trainer = cls(*load_owned(folder), plan, divided)
        trainer.step = progress["step"]
        state = load_file(folder / OPTIMIZER)
        asking = {name.removeprefix(ASKING): state.pop(name) for name in list(state) if name.startswith(ASKING)}
        trainer.learner.load_state(state)
        if trainer.asking:
            heads = trainer.asking.module.state_dict()
            trainer.asking.module.load_state_dict({name: asking.pop(name) for name in heads})
            trainer.asking.load_state(asking)
        return trainer


def load_owned(folder: Path | str) -> tuple[DeepSeekVL2, Processor]:
    """A checkpoint, to be trained.

    Mapped from the file, numbers begin at any address, and sums over them run in another order: the last digits would
    differ from those of a run that was never stopped. So they are copied.
    """
    model, processor = load(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model, processor


def checkpoints(run: Path) -> list[Path]:
    """The whole ones, oldest first."""
    return sorted(path for path in run.glob("step-*") if (path / PROGRESS).exists())


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file, but of the one they are written into."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir()) if file.name != PROGRESS}


def write_plan(plan: Plan, run: Path) -> None:
    with written_whole(run) as staged:
        (staged / "plan.json").write_text(
            json.dumps({"plan": dataclasses.asdict(plan), "ran_on": circumstances()}, indent=1) + "\n")


def read_plan(run: Path) -> Plan:
    """Raises TrainingError if there is none."""
    if not (run / "plan.json").exists():
        raise TrainingError(f"{run} holds no plan.json, so there is no run to resume")
    return Plan(**json.loads((run / "plan.json").read_text())["plan"])


def relative_load(routing: Routing) -> list[float]:
    """How many times its fair share each expert of a layer gets: all 1 is perfectly even."""
    return (routing.load / routing.load.float().mean()).tolist()


def heaviest_load(routings: list[Routing]) -> float:
    """That of the busiest expert of any layer."""
    return max((max(relative_load(routing)) for routing in routings), default=1.0)


def mean_by_name(values: Iterable[float], names: Iterable[str]) -> dict[str, float]:
    """The mean of the values of each name, by name in alphabetical order."""
    collected: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        collected.setdefault(name, []).append(value)
    return {name: round(fmean(collected[name]), 4) for name in sorted(collected)}


def run_all(trainer: Trainer, run: Path) -> None:
    """Train to the plan's end. The team's first process shows a progress bar, logs, and saves once a minute."""
    trainer.save(run)
    if team.rank() > 0:
        for lesson in prepared(trainer):
            trainer.train_step(lesson)
            if team.as_the_first_says(None):
                trainer.save(run)
        trainer.save(run)
        return
    metrics = read_metrics(run, up_to=trainer.step)
    bar = tqdm(total=trainer.plan.steps, initial=trainer.step, desc="training", unit="step", smoothing=0.05)
    losses = tqdm(bar_format="{desc}", position=1)          # a second line: the loss of each ability
    saved_at = time.monotonic()
    heard: list[tuple[str, float]] = []                     # ability, loss: since the last line was logged
    with bar, losses, open(run / "metrics.jsonl", "w", encoding="utf-8") as log:
        log.writelines(json.dumps(line) + "\n" for line in metrics)
        for lesson in prepared(trainer):
            measured = trainer.train_step(lesson)
            heard += measured["abilities"].items()
            bar.update()
            if trainer.step % LOG_EVERY == 0:
                names, values = zip(*heard, strict=True)
                measured["abilities"], heard = mean_by_name(values, names), []
                log.write(json.dumps(measured) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{measured['loss']:.2f}", load=f"{measured['load']:.1f}")
                losses.set_description_str("  ".join(f"{name} {x:.2f}" for name, x in measured["abilities"].items()))
            if team.as_the_first_says(time.monotonic() - saved_at > SAVE_EVERY):
                trainer.save(run)
                saved_at = time.monotonic()
    trainer.save(run)


def prepared(trainer: Trainer) -> Iterator[Lesson]:
    """The lessons that are left, each drawn by a second thread while the step before it is computed."""
    with ThreadPoolExecutor(max_workers=1) as artist:
        def order(step: int):
            return artist.submit(trainer.plan.lesson_at, step, trainer.processor)
        coming = order(trainer.step)
        for step in range(trainer.step, trainer.plan.steps):
            lesson = coming.result()
            if step + 1 < trainer.plan.steps:
                coming = order(step + 1)
            yield lesson


def read_metrics(run: Path, up_to: float = math.inf) -> list[dict]:
    """The logged lines, up to this step."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [line for line in lines if line["step"] <= up_to]


def measured(plan: Plan, minutes: float, model: DeepSeekVL2, processor: Processor, divided: str = "") -> Plan:
    """The plan, completed: with the dtype that is faster on this machine, and as many steps as fit the minutes.

    What the plan already says (steps not 0, a dtype) stays. Measured on a copy of the model, with a few batches of
    every stage; the plan depends on the clock only here. A model that is trained further can see already: all of the
    time is for the steps.
    """
    if plan.steps and plan.dtype:
        return plan
    seeing = 0 if plan.start else SEEING
    seconds = {dtype: _seconds_a_step(dataclasses.replace(plan, steps=1000, dtype=dtype), model, processor, divided)
               for dtype in ([plan.dtype] if plan.dtype else DTYPES)}
    dtype = min(seconds, key=seconds.get)
    steps = plan.steps or max(1, int((1 - seeing) * minutes * 60 / seconds[dtype]))
    look = plan.sight
    if not look and seeing:
        for tries in (2, 8):        # the first warm up
            start = time.perf_counter()
            dataclasses.replace(plan, dtype=dtype).see(copy.deepcopy(model), processor, tries, show=False)
        look = max(1, int(seeing * minutes * 60 * tries / (time.perf_counter() - start)))
    return team.as_the_first_says(dataclasses.replace(plan, dtype=dtype, steps=steps, sight=look))


def _seconds_a_step(plan: Plan, model: DeepSeekVL2, processor: Processor, divided: str, tries: int = 6) -> float:
    """On average over the course, of each stage the first step not counted, which warms up."""
    trainer, mean, began = Trainer(copy.deepcopy(model), processor, plan, divided), 0.0, 0.0
    for stage in COURSES[plan.course]:
        trainer.step = int(began * plan.steps)
        lessons = prepared(trainer)
        for i in range(1 + tries):
            if i == 1:
                start = time.perf_counter()
            trainer.train_step(next(lessons))
        lessons.close()
        mean += (stage.until - began) * (time.perf_counter() - start) / tries
        began = stage.until
    return mean


def circumstances() -> dict[str, str]:
    """What else one would need to repeat a run."""
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
                                capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"commit": commit, "python": platform.python_version(), "torch": torch.__version__,
            "machine": platform.machine(), "threads": str(torch.get_num_threads())}
