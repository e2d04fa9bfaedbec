"""A model divided between two processes: the losses, checkpoints and memory, beside those of one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import small_config

import minivl2
from minivl2.experts import MixtureOfExperts
from minivl2.training import loop, shard, team

STEPS, HALF = 20, 10
WORKER = str(Path(__file__).parent / "together.py")


def work(lines: list[str], processes: int) -> None:
    start = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, *start, WORKER, *lines], capture_output=True, text=True, timeout=900,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path,
                                            "PYTHONFAULTHANDLER": "1"})     # should it crash below Python: where
    assert done.returncode == 0, done.stderr


def stopped_halfway(run: Path, copy: Path) -> Path:
    """The run as it would be had it been killed after half of its steps."""
    shutil.copytree(run, copy)
    for folder in loop.checkpoints(copy):
        if int(folder.name.removeprefix("step-")) > HALF:
            shutil.rmtree(folder)
    return copy


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with all runs: alone, weights and experts by two; those, stopped and resumed by the other number."""
    house = tmp_path_factory.mktemp("runs")
    full = f"--steps {STEPS} --batch 4 --dtype float32 --out {house}"
    short = f"--steps 4 --batch 4 --dtype bfloat16 --out {house}"
    told = f"--course more --steps 4 --batch 4 --dtype float32 --out {house}"       # where to look, with most pictures
    work([f"{full}/alone", f"{short}/alone-bfloat16", f"{told}/alone-told"], 1)
    for way in shard.WAYS:
        stopped_halfway(house / "alone", house / f"alone-then-{way}")
    work([f"travel {house}"]
         + [f"{full}/{way} --shard {way}" for way in shard.WAYS]
         + [f"{short}/{way}-bfloat16 --shard {way}" for way in shard.WAYS]
         + [f"{told}/{way}-told --shard {way}" for way in shard.WAYS]
         + [f"{full}/alone-then-{way} --resume --shard {way}" for way in shard.WAYS], 2)
    for way in shard.WAYS:
        stopped_halfway(house / way, house / f"{way}-then-alone")
    work([f"{full}/{way}-then-alone --resume" for way in shard.WAYS], 1)
    return house


def losses(run: Path) -> list[float]:
    return [line[name] for line in loop.read_metrics(run) for name in ("loss", "balance", "gradient")]


@pytest.mark.parametrize("way", shard.WAYS)
def test_two_who_share_a_model_learn_what_one_learns(runs, way):
    assert len(losses(runs / way)) == 3 * STEPS
    assert losses(runs / way) == pytest.approx(losses(runs / "alone"), abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("way", shard.WAYS)
def test_they_are_told_where_to_look_as_one_is(runs, way):
    assert losses(runs / f"{way}-told") == pytest.approx(losses(runs / "alone-told"), abs=1e-5, rel=1e-6)
    assert len(losses(runs / "alone-told")) == 3 * 4


@pytest.mark.parametrize("way", shard.WAYS)
def test_they_compute_in_bfloat16_too(runs, way):
    """As far as its digits go: sums run in another order, and processors that multiply bfloat16 round in other places."""
    alone, together = losses(runs / "alone-bfloat16"), losses(runs / f"{way}-bfloat16")
    assert len(alone) == 3 * 4 and together == pytest.approx(alone, abs=0.05, rel=torch.finfo(torch.bfloat16).eps)
    assert alone != pytest.approx(losses(runs / "alone")[:12], abs=1e-5)


@pytest.mark.parametrize("way", shard.WAYS)
@pytest.mark.parametrize("name", ["alone-then-{}", "{}-then-alone"])
def test_a_run_may_go_on_with_another_number_of_processes(runs, way, name):
    resumed = runs / name.format(way)
    assert [line["step"] for line in loop.read_metrics(resumed)] == list(range(1, STEPS + 1))
    assert losses(resumed) == pytest.approx(losses(runs / "alone"), abs=1e-5, rel=1e-6)
    steps = [json.loads((folder / loop.PROGRESS).read_text())["step"] for folder in loop.checkpoints(resumed)]
    assert steps == list(range(STEPS + 1))


@pytest.mark.parametrize("way", shard.WAYS)
def test_what_they_save_is_whole(runs, way):
    alone, together = (folder / f"step-{STEPS:06}" for folder in (runs / "alone", runs / way))
    assert minivl2.verify(together) == []
    for file in ("model.safetensors", loop.OPTIMIZER):
        a, b = load_file(alone / file), load_file(together / file)
        assert {name: t.shape for name, t in a.items()} == {name: t.shape for name, t in b.items()}
    for file in ("config.json", "tokenizer.json"):
        assert (alone / file).read_bytes() == (together / file).read_bytes()


@pytest.mark.parametrize("way", shard.WAYS)
def test_each_keeps_half_of_the_weights_and_of_the_optimisers_memory(runs, way):
    alone = json.loads((runs / "alone" / "parts-0.json").read_text())
    assert alone["weights"] == sum(p.numel() for p in minivl2.build(small_config()).parameters())
    kept = [json.loads((runs / way / f"parts-{rank}.json").read_text()) for rank in range(2)]
    for what in ("weights", "optimizer"):
        parts = [one[what] for one in kept]
        assert sum(parts) >= alone[what] and max(parts) < 0.53 * alone[what], parts     # rows that do not come in pairs


def test_tokens_travel_to_experts_and_back(runs):
    """Also when one process has no guests, and has to take part nevertheless."""
    for rank in range(2):
        found = json.loads((runs / f"travel-{rank}.json").read_text())
        assert len(found) == 2
        for case, differences in found.items():
            assert differences == pytest.approx([0, 0, 0], abs=1e-12), case


def test_experts_are_shared_evenly_or_not_at_all(monkeypatch):
    monkeypatch.setattr(team, "size", lambda: 3)
    with pytest.raises(RuntimeError, match="4 experts cannot be shared evenly by 3 processes"):
        shard.keep_own_experts(MixtureOfExperts(small_config().language))


def test_one_process_has_nobody_to_share_with():
    done = subprocess.run([sys.executable, "train_tiny.py", "--shard"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "torchrun --standalone" in done.stderr and "Traceback" not in done.stderr
