"""Train a toy DeepSeek-VL2 from nothing, on pictures drawn as they are needed. No download, no GPU.

    python train_tiny.py                        ten minutes on two laptop cores, then it answers questions
    python train_tiny.py --minutes 60           longer is better
    python train_tiny.py --resume               go on with a run that was interrupted
    torchrun --standalone --nproc-per-node 2 train_tiny.py
                                                two processes: half as fast again (this is what make train does)
    torchrun --standalone --nproc-per-node 2 train_tiny.py --shard
                                                each process keeps half of the model: how larger ones are trained
    python train_tiny.py --course whole --minutes 180
                                                everything the toy world asks, not only what ten minutes can teach
    python train_tiny.py --from weights/toy --course more --minutes 60
                                                train a toy further, on what is hardest to learn
    python train_tiny.py --ablate latent        what an idea of the paper buys: with it and without, compared

You will see one progress bar, then a table of what it learned, each ability beside a blind guess, and a few answers.
The folder runs/toy then holds model/ (a checkpoint in the published layout: `minivl2 ask` reads it), curves.png,
sheet.png (pictures, questions, answers), scores.json, metrics.jsonl and plan.json.
"""

import argparse
import itertools
import json
import os
from pathlib import Path

import torch

import minivl2
from minivl2.heap import keep_freed
from minivl2.processor import Processor
from minivl2.training import ablations, evaluation, growth, loop, report, shard, team
from minivl2.training.curriculum import COURSES
from minivl2.training.tokenizer import sentences, train_tokenizer


def main() -> None:
    options = read_options()
    keep_freed()        # every step wants the same memory again
    if options.recipe == "paper":
        options.course = "paper"
    team.join()
    if options.shard and team.size() == 1:
        raise SystemExit("--shard divides the model among several processes, and this is one: start it with torchrun, as\n"
                         "  torchrun --standalone --nproc-per-node 2 train_tiny.py --shard")
    if options.ablate:
        compare(options)
    else:
        train(options, options.out)
    team.leave()


def train(options: argparse.Namespace, run: Path, variant: str = "") -> dict:
    """Train, or go on training, the toy or a variant of it. Returns its scores (to the first of a team)."""
    plan = loop.read_plan(run) if options.resume else make_plan(options, run, variant)
    # A run that was stopped while it learned to see begins again: it is fixed by its plan.
    trainer = (loop.Trainer.resume(run, options.shard) if options.resume and loop.checkpoints(run)
               else begin(plan, options.shard))
    if team.rank() == 0:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in minivl2.build(trainer.model.config).parameters())
        kept = sum(shard.own(p).numel() for p in trainer.model.parameters())
        here = f" ({kept / 1e6:.2f} M of them in this process)" if options.shard else ""
        print(f"{parameters / 1e6:.1f} M parameters{here}, {plan.steps} steps of {plan.batch} pictures, {plan.dtype}"
              + (f", resumed at step {trainer.step}" if trainer.step else ""))
    loop.run_all(trainer, run)
    model = trainer.whole()
    return show(model, trainer, run, options) if team.rank() == 0 else {}


def compare(options: argparse.Namespace) -> None:
    """Train the variants of an ablation one after the other, for as many steps each, and draw what came of them."""
    house = options.out.with_name(f"ablate-{options.ablate}")
    options.course = ablations.ABLATIONS[options.ablate].course
    results, metrics, resume = {}, {}, options.resume
    for name in ablations.ABLATIONS[options.ablate].variants:
        variant = f"{options.ablate}: {name}"
        run = ablations.folder_of(variant, house)
        options.resume = resume and (run / "plan.json").exists()
        results[name] = train(options, run, variant)
        plan = loop.read_plan(run)
        options.steps, options.sight, options.dtype = plan.steps, plan.sight, plan.dtype      # as the first
        metrics[name] = loop.read_metrics(run)
    if team.rank() == 0:
        print("\n" + ablations.report(options.ablate, plan, results, metrics, house / "comparison.png"))
        print(f"Look at {house}/comparison.png (the numbers: comparison.json)")


def make_plan(options: argparse.Namespace, run: Path, variant: str) -> loop.Plan:
    """A plan that fits the time, written into a new folder."""
    plan = loop.Plan(
        options.steps or 0, options.seed, options.batch, options.dtype or "", options.sight, options.course, variant,
        str(options.start or ""), options.deeper, options.closer, options.latent)
    if team.rank() == 0:
        if run.exists():
            print(f"an earlier run is kept as {move_aside(run)}")
        if not options.steps:
            print("measuring how fast this machine is, a few seconds ...")
    plan = loop.measured(plan, options.minutes, *untrained(plan), options.shard)
    if team.rank() == 0:
        loop.write_plan(plan, run)
    return plan


def untrained(plan: loop.Plan) -> tuple[minivl2.DeepSeekVL2, Processor]:
    """Random weights and a tokenizer made for the toy world, or the checkpoint that is to be trained further."""
    torch.manual_seed(plan.seed)
    if plan.start:
        model, processor = loop.load_owned(plan.start)
        model = growth.deepened(model, plan.deeper, plan.closer)
        try:
            return growth.widened(model, plan.latent) if plan.latent else model, processor
        except ValueError as error:
            raise SystemExit(f"--latent {plan.latent}: {error}") from None
    config, seeing = ablations.configurations(plan.variant)
    return minivl2.build(config), Processor(train_tokenizer(sentences(), config.language.vocab_size), seeing)


def begin(plan: loop.Plan, divided: str) -> loop.Trainer:
    """A model that can see, and not yet speak."""
    model, processor = untrained(plan)
    if plan.sight:
        plan.see(model, processor, plan.sight)
    return loop.Trainer(model, processor, plan, divided)


def show(model: minivl2.DeepSeekVL2, trainer: loop.Trainer, run: Path, options: argparse.Namespace) -> dict:
    """What was learned: files, scores, answers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)      # the others have nothing to do

    model, processor = model.eval(), trainer.processor
    minivl2.save(model, processor, run / "model")
    report.draw_curves(loop.read_metrics(run), run / "curves.png")

    last = COURSES[trainer.plan.course][-1]
    asked = evaluation.questions(options.evaluation_seed, options.per_ability, tuple(last.kinds), last.grids)
    answered = evaluation.answer_all(model, processor, asked)
    result = evaluation.scores(answered)
    (run / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
    report.draw_sheet(answered[:20], run / "sheet.png")

    print(f"\nOn pictures it has never seen:\n{evaluation.table(result)}\n\nSome of its answers:")
    for one in answered[:8]:
        print(f"  {one.question.text:<45} {one.answer}" + ("" if one.right else f"   (no: {one.question.answer})"))
    print(f"\nLook at {run}/sheet.png and {run}/curves.png, or ask it yourself:"
          f"\n  minivl2 ask picture.png 'how many things are there?' --weights {run}/model")
    torch.set_num_threads(threads)
    return result


def move_aside(run: Path) -> Path:
    """runs/toy becomes runs/toy-1, or the next number that is free."""
    free = next(path for i in itertools.count(1) if not (path := run.with_name(f"{run.name}-{i}")).exists())
    return run.rename(free)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long to train, before the evaluation (default 10)")
    parser.add_argument("--steps", type=int, help="train so many steps instead, however long they take")
    parser.add_argument("--course", choices=("short", "whole", "more", "again", "polish", "things", "reading"),
                        default="short",
                        help="short: what ten minutes can teach (default); whole: everything, for hours; more: everything, "
                             "for a toy that knows things and cannot read well; again: everything, for one whose "
                             "eye has become sharper (--sight); polish: everything at a low rate, to end with; things: "
                             "shapes and boxes only; reading: text only")
    parser.add_argument("--recipe", choices=("fast", "paper"), default="fast",
                        help="paper: SigLIP's loss, then the paper's three stages, with AdamW (default: the fastest found)")
    parser.add_argument("--ablate", choices=tuple(ablations.ABLATIONS),
                        help="train the toy with and without one idea, so many minutes each, and compare")
    parser.add_argument("--from", dest="start", type=Path, metavar="DIR",
                        help="train this checkpoint further instead of random weights (take another --seed than its run "
                             "had, or it sees the same pictures again)")
    parser.add_argument("--deeper", type=int, default=0, metavar="LAYERS",
                        help="with --from: so many layers more for its vision tower, which change nothing until they learn")
    parser.add_argument("--closer", type=int, default=0, metavar="LAYERS",
                        help="the same for its decoder: of one more, to look closer with (minivl2/training/looking.py)")
    parser.add_argument("--latent", type=int, default=0, metavar="NUMBERS",
                        help="with --from: so many numbers in its latents, of which nothing is made yet, more than it has")
    parser.add_argument("--sight", type=int, default=0, metavar="STEPS",
                        help="steps of learning to see first (default: a third of the minutes; with --from, none: if you "
                             "say so, its eye becomes sharper, and says what it sees as before)")
    parser.add_argument("--dtype", choices=loop.DTYPES, help="to compute in (default: the faster one here, measured)")
    parser.add_argument("--batch", type=int, default=16, help="pictures per step (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the pictures (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder of the run (default runs/toy)")
    parser.add_argument("--shard", choices=shard.WAYS, nargs="?", const="weights", default="",
                        help="under torchrun, divide the model among the processes: rows of every matrix (weights, what "
                             "--shard alone means), or these but each expert whole, with one owner (experts)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder from its last checkpoint")
    parser.add_argument("--per-ability", type=int, default=50, help="questions per ability at the end (default 50)")
    parser.add_argument("--evaluation-seed", type=int, default=1, help="of the pictures it is tested on (default 1)")
    options = parser.parse_args()
    if options.start and options.ablate:
        parser.error("--ablate compares toys that learned everything in their own way, so it cannot go on --from one")
    if (options.deeper or options.closer or options.latent) and not options.start:
        parser.error("--deeper, --closer and --latent make a checkpoint larger: they need --from DIR")
    if options.start and not (options.start / "config.json").exists():
        parser.error(f"--from {options.start}: no checkpoint is there (config.json is missing)")
    return options


if __name__ == "__main__":
    main()
