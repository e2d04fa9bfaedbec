"""The command line: `minivl2`, which is also `python -m minivl2`.

Tests    tests/test_cli.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from minivl2 import cost, grounding, toyworld
from minivl2.config import SIZES, Config
from minivl2.conversation import about
from minivl2.generation import stream
from minivl2.images import open_image
from minivl2.training import cluster
from minivl2.weights import load, verify

REPOSITORIES = {"tiny": "deepseek-ai/deepseek-vl2-tiny", "small": "deepseek-ai/deepseek-vl2-small",
                "base": "deepseek-ai/deepseek-vl2"}
HOUSE = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 for success, 1 for a problem, said in one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, OSError) as problem:        # all of minivl2's errors are ValueErrors
        print(f"minivl2 {options.name}: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def ask(options: argparse.Namespace) -> int:
    *images, question = options.images_and_question
    folder = options.weights or default_weights()
    pictures = [open_image(image) for image in images]
    model, processor = load(folder, dtype=getattr(torch, options.dtype), device=options.device)
    messages = about(question, len(pictures))
    answer = ""
    for piece in stream(model, processor, messages, pictures, options.max_new_tokens, temperature=options.temperature,
                        top_p=options.top_p, prefill_chunk=options.prefill_chunk, seed=options.seed):
        print(piece, end="", flush=True)
        answer += piece
    print()
    boxes = grounding.parse(answer)
    if boxes and pictures:
        # When two images are compared, the boxes are in the last one.
        grounding.draw(pictures[-1], boxes).save(options.output)
        print(f"{len(boxes)} box{'es' * (len(boxes) > 1)} drawn on {options.output}", file=sys.stderr)
    return 0


def xray(options: argparse.Namespace) -> int:
    from minivl2.xray import XRay  # here, as it draws with matplotlib: importing that takes longer than most commands

    if not options.output.parent.is_dir():
        raise ValueError(f"{options.output.parent} is not a folder: make it first, or write the page elsewhere with -o")
    *images, question = options.images_and_question
    pictures = [open_image(image) for image in images]
    model, processor = load(options.weights or default_weights(), dtype=getattr(torch, options.dtype), device=options.device)
    seen = XRay(model, processor, question, pictures, [Path(image).name for image in images])
    for piece in seen.stream(
            options.max_new_tokens, temperature=options.temperature, top_p=options.top_p, seed=options.seed):
        print(piece, end="", flush=True)
    print()
    page = seen.page(options.output.parent).encode()
    options.output.write_bytes(page)
    print(f"{options.output}: every step of this answer, {len(page) / 1e6:.1f} MB. Open it in a browser", file=sys.stderr)
    return 0


def play(options: argparse.Namespace) -> int:
    try:
        from minivl2.play import HERE, check_port, serve
    except ImportError:
        print("minivl2 play needs a web toolkit: pip install 'minivl2[play]'", file=sys.stderr)
        return 1
    check_port(options.port)
    model, processor = load(options.weights or default_weights(), dtype=getattr(torch, options.dtype), device=options.device)
    print(f"http://{HERE}:{options.port}   (Ctrl-C ends it)", flush=True)
    serve(model, processor, options.port, options.max_new_tokens)
    return 0


def inspect(options: argparse.Namespace) -> int:
    named = options.model in SIZES
    config = Config.named(options.model) if named else Config.from_file(options.model)
    print(cost.report(f"DeepSeek-VL2 {options.model}" if named else options.model, config))
    if options.train is not None:
        if options.model not in cluster.PAPER:
            raise ValueError(f"--train knows {', '.join(cluster.PAPER)}, whose training the paper describes")
        print("\n" + cluster.report(options.model, options.train))
    return 0


def check(options: argparse.Namespace) -> int:
    problems = verify(options.folder)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems in {options.folder}", file=sys.stderr)
        return 1
    print(f"{options.folder} is whole: every tensor is there, has its shape, and is finite")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from minivl2.training import evaluation  # here, because the other commands need no drawing

    folder = options.folder or default_weights()
    model, processor = load(folder)
    asked = evaluation.questions(options.seed, options.per_task, tuple(options.kinds or toyworld.KINDS))
    answered = evaluation.answer_all(model, processor, asked)
    result = evaluation.scores(answered)
    print(f"{evaluation.table(result)}\n\n{evaluation.table_by_grid(answered)}")
    if options.json:
        print(json.dumps(result))
    return 0


def download(options: argparse.Namespace) -> int:
    folder = options.to or Path("weights") / options.size
    repository = REPOSITORIES[options.size]
    by_hand = (f"By hand: put config.json, processor_config.json, tokenizer.json and all *.safetensors of {repository} "
               f"into {folder}, then try: minivl2 verify {folder}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        print(f"minivl2 download needs the hub client: pip install 'minivl2[download]'. {by_hand}", file=sys.stderr)
        return 1
    try:
        snapshot_download(repository, local_dir=folder, allow_patterns=["*.json", "*.safetensors"])
    except Exception as problem:        # the client's own errors, and those of the network beneath it
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        print(f"minivl2 download: could not fetch {repository} ({reason}). {by_hand}", file=sys.stderr)
        return 1
    print(f"{repository} is in {folder}. Now try: minivl2 verify {folder}")
    return 0


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def default_weights() -> Path:
    """weights/toy, or else what make train made; here or in the repository."""
    for folder in ("weights/toy", "runs/toy/model"):
        for house in (Path.cwd(), HOUSE):
            if (house / folder / "config.json").exists():
                return house / folder
    raise ValueError("there is no toy model here. Train one (make train), or name a checkpoint with --weights DIR")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minivl2", description="DeepSeek-VL2: ask a vision-language model about pictures.")
    commands = parser.add_subparsers(title="commands", required=True, dest="name", metavar="COMMAND")

    def which_model(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--weights", type=Path, metavar="DIR",
                         help="checkpoint folder (default: weights/toy, or else runs/toy/model, which make train makes)")
        sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                         help="numbers to compute with; bfloat16 takes half the memory (default: %(default)s)")
        sub.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")

    def how_to_answer(sub: argparse.ArgumentParser, longest: int) -> None:
        sub.add_argument("--max-new-tokens", type=int, default=longest, metavar="N",
                         help="longest answer (default: %(default)s)")
        sub.add_argument("--temperature", type=float, default=0.0, metavar="T",
                         help="0: always the likeliest word; higher: more varied (default: %(default)s)")
        sub.add_argument("--top-p", type=float, default=1.0, metavar="P",
                         help="draw among the likeliest words that together have this probability (default: %(default)s)")
        sub.add_argument("--seed", type=int, help="draw the same answer again")

    def command(function, name: str, text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text[0].lower() + text[1:], description=f"{text}.", epilog=f"Example: {example}")
        sub.set_defaults(command=function)
        return sub

    sub = command(ask, "ask", "Ask about one or more images, or about none",
                  "minivl2 ask street.jpg 'Where is <|ref|>the red car<|/ref|>?' --weights weights/tiny --dtype bfloat16")
    sub.add_argument("images_and_question", nargs="+", metavar="IMAGE... QUESTION",
                     help="image files, then the question in quotation marks. The images are shown before it; write "
                          "<image> in it to place them yourself")
    which_model(sub)
    how_to_answer(sub, longest=512)
    sub.add_argument("--prefill-chunk", type=int, metavar="N", help="read the prompt N tokens at a time, in less memory")
    sub.add_argument("--output", type=Path, default=Path("boxes.png"), metavar="FILE",
                     help="where to draw the boxes, if the answer has some (default: %(default)s)")

    sub = command(xray, "xray", "Answer, and write a page in which every step of that answer can be looked at",
                  "minivl2 xray street.jpg 'Where is <|ref|>the red car<|/ref|>?' -o street.html")
    sub.add_argument("images_and_question", nargs="+", metavar="IMAGE... QUESTION",
                     help="image files, then the question in quotation marks, as for ask")
    which_model(sub)
    how_to_answer(sub, longest=160)
    sub.add_argument("-o", "--output", type=Path, default=Path("xray.html"), metavar="FILE",
                     help="the page: one file, to be opened in a browser (default: %(default)s)")

    sub = command(play, "play", "Ask about pictures in the browser, and look inside every answer; for this machine only",
                  "minivl2 play --weights weights/tiny --dtype bfloat16")
    which_model(sub)
    sub.add_argument("--max-new-tokens", type=positive, default=160, metavar="N",
                     help="longest answer (default: %(default)s)")
    sub.add_argument("--port", type=int, default=8000, help="where it listens (default: %(default)s)")

    sub = command(inspect, "inspect", "Show what a model costs: parameters, cache, memory", "minivl2 inspect tiny")
    sub.add_argument("model", metavar="NAME|DIR", help=f"{', '.join(SIZES)}; or a checkpoint folder; or its config.json")

    sub.add_argument("--train", type=positive, nargs="?", const=0, metavar="MACHINES",
                     help="and what its training costs on so many machines (default: the paper's number)")

    sub = command(check, "verify", "Check a checkpoint: every tensor there, of the right shape, finite",
                  "minivl2 verify weights/tiny")
    sub.add_argument("folder", type=Path, metavar="DIR", help="checkpoint folder")

    sub = command(evaluate, "eval", "Score a toy model on fresh pictures, each ability beside a blind guess",
                  "minivl2 eval weights/toy --seed 7")
    sub.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="checkpoint folder (default: weights/toy)")
    sub.add_argument("--seed", type=int, default=1, help="of the pictures (default: %(default)s)")
    sub.add_argument("--per-task", type=int, default=100, metavar="N", help="questions per ability (default: %(default)s)")
    sub.add_argument("--kinds", nargs="+", choices=tuple(toyworld.KINDS), metavar="KIND",
                     help=f"only these kinds of picture, of {', '.join(toyworld.KINDS)}")
    sub.add_argument("--json", action="store_true", help="print the scores as JSON in the last line")

    sub = command(download, "download", "Fetch the published weights (6.7, 32 or 55 GB)", "minivl2 download tiny")
    sub.add_argument("size", choices=tuple(REPOSITORIES), help="which of the three models")
    sub.add_argument("--to", type=Path, metavar="DIR", help="folder to put them in (default: weights/SIZE)")
    return parser
