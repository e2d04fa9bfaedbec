"""The training loop, and how it is saved so that it can be resumed to the same weights.

Tests    tests/test_training.py

A run is a folder:

    plan.json          all that decides the run, and what it ran on
    metrics.jsonl      a line every few steps
    step-000400/       the newest checkpoint: the published layout, plus optimizer.state and progress.json
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from minivl2.batch import Batch
from minivl2.experts import Routing
from minivl2.files import written_whole
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.training import optimizers
from minivl2.training.curriculum import CURRICULUM, stage_at, training_batch
from minivl2.weights import load, write_checkpoint

LOG_EVERY = 10          # steps
SAVE_EVERY = 60         # seconds
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

    def batch_at(self, step: int, processor: Processor) -> Batch:
        return training_batch(processor, self.seed, step, stage_at(step / self.steps), self.batch)


class Trainer:
    """Steps a model. `step` counts the steps taken."""

    def __init__(self, model: DeepSeekVL2, processor: Processor, plan: Plan):
        self.model, self.processor, self.plan = model.train(), processor, plan
        self.optimizers = optimizers.make(model)
        self.step = 0
        # Both passes run in bfloat16 where that is faster, on a copy: an update is often smaller than bfloat16's
        # steps, so what is learned has to be kept in float32.
        dtype = getattr(torch, plan.dtype)
        self.working = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step of both optimisers. Returns what to log. Raises TrainingError if the loss is not a number."""
        progress = self.step / self.plan.steps
        loss = self.working.loss(batch)
        if not loss.total.isfinite():
            raise TrainingError(f"the loss of step {self.step} (seed {self.plan.seed}) is {loss.total.item()}")
        loss.total.backward()
        self._fetch_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * optimizers.rate(progress)
            optimizer.step()
            optimizer.zero_grad()
        self._balance(loss.routings)
        self._hand_out_weights()
        self.step += 1
        return {
            "step": self.step, "loss": loss.text.item(), "balance": loss.balance.item(), "gradient": norm.item(),
            "rate": optimizers.rate(progress), "load": heaviest_load(loss.routings),
        }

    def _fetch_gradients(self) -> None:
        if self.working is not self.model:
            for own, worked in zip(self.model.parameters(), self.working.parameters(), strict=True):
                if worked.grad is not None:         # an expert that nobody visited has none
                    own.grad, worked.grad = worked.grad.to(own.dtype), None

    @torch.no_grad()
    def _hand_out_weights(self) -> None:
        if self.working is not self.model:
            for own, worked in zip(self.model.state_dict().values(), self.working.state_dict().values(), strict=True):
                worked.copy_(own)

    def _balance(self, routings: list[Routing]) -> None:
        """Where the gate has a correction bias, move it toward balance."""
        gates = [layer.mlp.gate for layer in self.model.decoder.layers if hasattr(layer.mlp, "gate")]
        for gate, routing in zip(gates, routings, strict=True):
            if hasattr(gate, "bias"):
                gate.step_bias(routing.experts)

    def save(self, run: Path) -> None:
        """A new checkpoint folder, by one rename; then the older ones go. A kill at any moment leaves a whole one."""
        state = {
            f"{i}.{j}.{key}": value
            for i, optimizer in enumerate(self.optimizers)
            for j, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }
        folder = run / f"step-{self.step:06}"
        if folder.exists():
            return
        with written_whole(folder) as staged:
            write_checkpoint(self.model, self.processor, staged)
            save_file(state, staged / OPTIMIZER)
            (staged / "progress.json").write_text(json.dumps({"step": self.step}))
        for older in checkpoints(run)[:-1]:
            shutil.rmtree(older)

    @classmethod
    def resume(cls, run: Path) -> Trainer:
        """As it was when the newest checkpoint was written."""
        found = checkpoints(run)
        if not found or not (run / "plan.json").exists():
            raise TrainingError(f"{run} holds no checkpoint to resume from")
        plan = Plan(**json.loads((run / "plan.json").read_text())["plan"])
        model, processor = load(found[-1])
        trainer = cls(model, processor, plan)
        trainer.step = json.loads((found[-1] / "progress.json").read_text())["step"]
        saved = load_file(found[-1] / OPTIMIZER)
        for i, optimizer in enumerate(trainer.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in saved.items():
                which, parameter, key = name.split(".")
                if int(which) == i:
                    state.setdefault(int(parameter), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return trainer


def checkpoints(run: Path) -> list[Path]:
    """The whole ones, oldest first."""
    return sorted(path for path in run.glob("step-*") if (path / "progress.json").exists())


def heaviest_load(routings: list[Routing]) -> float:
    """How many times its fair share the busiest expert of any layer gets: 1 is perfectly even."""
    loads = [r.experts.flatten().bincount(minlength=r.scores.shape[1]) for r in routings]
    return max((load.max() / load.float().mean()).item() for load in loads) if loads else 1.0


def run_all(trainer: Trainer, run: Path) -> None:
    """Train to the plan's end, with a progress bar, a log and a checkpoint a minute."""
    plan = trainer.plan
    run.mkdir(parents=True, exist_ok=True)
    if trainer.step == 0:
        description = {"plan": dataclasses.asdict(plan), "ran_on": circumstances()}
        (run / "plan.json").write_text(json.dumps(description, indent=1) + "\n")
    metrics = read_metrics(run, up_to=trainer.step)
    bar = tqdm(total=plan.steps, initial=trainer.step, desc="training", unit="step", smoothing=0.05)
    saved_at = time.monotonic()
    with bar, open(run / "metrics.jsonl", "w", encoding="utf-8") as log:
        log.writelines(json.dumps(line) + "\n" for line in metrics)
        for batch in prepared(trainer):
            measured = trainer.train_step(batch)
            bar.update()
            if trainer.step % LOG_EVERY == 0:
                log.write(json.dumps(measured) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{measured['loss']:.2f}", load=f"{measured['load']:.1f}")
            if time.monotonic() - saved_at > SAVE_EVERY:
                trainer.save(run)
                saved_at = time.monotonic()
    trainer.save(run)


def prepared(trainer: Trainer) -> Iterator[Batch]:
    """The batches that are left, each drawn by a second thread while the step before it is computed."""
    with ThreadPoolExecutor(max_workers=1) as artist:
        def order(step: int):
            return artist.submit(trainer.plan.batch_at, step, trainer.processor)
        coming = order(trainer.step)
        for step in range(trainer.step, trainer.plan.steps):
            batch = coming.result()
            if step + 1 < trainer.plan.steps:
                coming = order(step + 1)
            yield batch


def read_metrics(run: Path, up_to: float = math.inf) -> list[dict]:
    """The logged lines, up to this step."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [line for line in lines if line["step"] <= up_to]


def steps_in(minutes: float, model: DeepSeekVL2, processor: Processor, plan: Plan) -> Plan:
    """The plan, with as many steps as this machine does in so many minutes, in the faster dtype: both are measured.

    Measured on a copy, with a few batches of every stage; so the model is not touched, and the plan depends on the
    clock only here.
    """
    seconds = {}
    for dtype in ("bfloat16", "float32"):
        trial = Trainer(copy.deepcopy(model), processor, dataclasses.replace(plan, dtype=dtype))
        seconds[dtype] = sum(
            (stage.until - start) * _seconds_a_step(trial, stage)
            for start, stage in zip((0.0, *(s.until for s in CURRICULUM)), CURRICULUM, strict=False))
    dtype = min(seconds, key=seconds.get)
    return dataclasses.replace(plan, dtype=dtype, steps=max(1, int(minutes * 60 / seconds[dtype])))


def _seconds_a_step(trainer: Trainer, stage, repeats: int = 4) -> float:
    times = []
    for i in range(repeats):
        batch = training_batch(trainer.processor, -1, i, stage, trainer.plan.batch)
        start = time.perf_counter()
        trainer.train_step(batch)
        times.append(time.perf_counter() - start)
    return sum(times[1:]) / (repeats - 1)       # the first warms up


def circumstances() -> dict[str, str]:
    """What else one would need to repeat a run."""
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
                                capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"commit": commit, "python": platform.python_version(), "torch": torch.__version__,
            "machine": platform.machine(), "threads": str(torch.get_num_threads())}
