"""The command line: `minivl2`, which is also `python -m minivl2`.

Tests    tests/test_cli.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

import torch
from PIL import Image

from minivl2 import cost, grounding, toyworld
from minivl2.config import SIZES, Config
from minivl2.conversation import about
from minivl2.generation import answer_each, stream
from minivl2.heap import keep_freed
from minivl2.images import open_image
from minivl2.quantize import agreement
from minivl2.training import cluster
from minivl2.weights import load, save, verify

REPOSITORIES = {"tiny": "deepseek-ai/deepseek-vl2-tiny", "small": "deepseek-ai/deepseek-vl2-small",
                "base": "deepseek-ai/deepseek-vl2"}
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic"}     # names of images
HOUSE = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 for success, 1 for a problem, said in one line on standard error."""
    options = _parser().parse_args(arguments)
    keep_freed()
    try:
        return options.command(options)
    except (ValueError, OSError) as problem:        # all of minivl2's errors are ValueErrors
        print(f"minivl2 {options.name}: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def ask(options: argparse.Namespace) -> int:
    images, questions = images_and_questions(options.images_and_questions)
    pictures = [open_image(image) for image in images]
    model, processor = loaded(options)
    how = {"temperature": options.temperature, "top_p": options.top_p, "prefill_chunk": options.prefill_chunk,
           "seed": options.seed}
    if len(questions) > 1:      # written side by side, and so printed when all are there
        answers = answer_each(model, processor, questions, pictures, options.max_new_tokens, **how)
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
            print(f"{question}\n    {answer}")
            draw_boxes(answer, pictures, options.output.with_stem(f"{options.output.stem}-{number}"))
        return 0
    answer = ""
    for piece in stream(model, processor, about(questions[0], len(pictures)), pictures, options.max_new_tokens, **how):
        print(piece, end="", flush=True)
        answer += piece
    print()
    draw_boxes(answer, pictures, options.output)
    return 0


def images_and_questions(words: list[str]) -> tuple[list[str], list[str]]:
    """The last is a question. Before it, what names a file, or looks as if it were to, is an image; images come first."""
    def image(word: str) -> bool:
        return Path(word).suffix.lower() in PICTURES or os.path.isfile(word)    # which bears a question of any length

    *others, last = words
    images = list(itertools.takewhile(image, others))
    questions = [*others[len(images):], last]
    late = next((word for word in questions[:-1] if image(word)), None)
    if late:
        raise ValueError(f"{late} stands after a question. First all images, then the questions, each in quotation marks")
    return images, questions


def draw_boxes(answer: str, pictures: list[Image.Image], target: Path) -> None:
    boxes = grounding.parse(answer)
    if boxes and pictures:
        # When two images are compared, the boxes are in the last one.
        grounding.draw(pictures[-1], boxes).save(target)
        print(f"{len(boxes)} box{'es' * (len(boxes) > 1)} drawn on {target}", file=sys.stderr)


def xray(options: argparse.Namespace) -> int:
    from minivl2.xray import XRay  # here, as it draws with matplotlib: importing that takes longer than most commands

    if not options.output.parent.is_dir():
        raise ValueError(f"{options.output.parent} is not a folder: make it first, or write the page elsewhere with -o")
    *images, question = options.images_and_question
    pictures = [open_image(image) for image in images]
    model, processor = loaded(options)
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
    model, processor = loaded(options)
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
    model, processor = load(folder, getattr(torch, options.dtype), quantize=options.quantize, pack=options.pack)
    asked = evaluation.questions(options.seed, options.per_task, tuple(options.kinds or toyworld.KINDS))
    answered = evaluation.answer_all(model, processor, asked)
    result = evaluation.scores(answered)
    print(f"{evaluation.table(result)}\n\n{evaluation.table_by_grid(answered)}")
    if options.quantize or options.pack:
        plain, _ = load(folder, getattr(torch, options.dtype))
        answers = [processor([*about(question.text, len(sample.images)), {"role": "assistant", "content": question.answer}],
                             sample.images, training=True) for sample, question in asked]
        result["against_plain"] = alike = agreement(plain, model, answers)
        print(f"\nagainst the weights as they are: {alike['kl']:.4f} nats of divergence, and for "
              f"{alike['same_likeliest']:.2%} of the answers' tokens the same is the likeliest")
    if options.json:
        print(json.dumps(result))
    return 0


def measure(options: argparse.Namespace) -> int:
    from minivl2 import bench, gains  # here, as they bring the toy's tokenizer along

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if options.threads:
        torch.set_num_threads(options.threads)
    target = options.model or str(default_weights())
    if options.gains:
        if options.quantize or options.pack:
            raise ValueError("--gains compares fast and plain ways of plain weights: leave out --quantize and --pack")
        found = gains.run(target, options.dtype, options.repeats, options.words, options.layers, say)
        print(gains.table(found))
    else:
        found = bench.run(target, options.dtype, options.quantize, options.pack,
                          options.repeats, options.words, options.layers, not options.alone, say)
        print(bench.table(found))
    if options.json:
        print(json.dumps(found))
    return 0


def shrink(options: argparse.Namespace) -> int:
    if options.to.resolve() == options.folder.resolve():
        raise ValueError(f"{options.to} would be written over, and what is rounded away does not come back: "
                         "name another folder with --to")
    model, processor = load(options.folder, getattr(torch, options.dtype), quantize=options.to_bits)
    save(model, processor, options.to)
    print(f"{options.to}: the same model with weights of {model.bits} bits. Try: minivl2 ask ... --weights {options.to}")
    return 0


def loaded(options: argparse.Namespace):
    return load(options.weights or default_weights(), getattr(torch, options.dtype), options.device, options.quantize,
                options.pack)


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
        how_kept(sub)

    def how_kept(sub: argparse.ArgumentParser) -> None:
        kept = sub.add_mutually_exclusive_group()
        kept.add_argument("--quantize", choices=("int8", "int4"),
                          help="round the weights to 8 or 4 bits while loading: less memory, quicker answers; on a CPU")
        kept.add_argument("--pack", action="store_true",
                          help="without rounding, put bfloat16 weights into the order that the processor reads fastest: "
                               "slower to load, quicker to answer")

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

    sub = command(ask, "ask", "Ask one or more questions about one or more images, or about none",
                  "minivl2 ask street.jpg 'Where is <|ref|>the red car<|/ref|>?' --weights weights/tiny --dtype bfloat16")
    sub.add_argument("images_and_questions", nargs="+", metavar="IMAGE... QUESTION...",
                     help="image files, then questions, each in quotation marks. The images are shown before each question; "
                          "write <image> in it to place them yourself. Of several questions, none knows of the others, and "
                          "the images are read only once")
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
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                     help="numbers to compute with (default: %(default)s)")
    how_kept(sub)
    sub.add_argument("--seed", type=int, default=1, help="of the pictures (default: %(default)s)")
    sub.add_argument("--per-task", type=int, default=100, metavar="N", help="questions per ability (default: %(default)s)")
    sub.add_argument("--kinds", nargs="+", choices=tuple(toyworld.KINDS), metavar="KIND",
                     help=f"only these kinds of picture, of {', '.join(toyworld.KINDS)}")
    sub.add_argument("--json", action="store_true", help="print the scores as JSON in the last line")

    sub = command(measure, "bench", "Measure how fast a model is on this machine, beside what the machine could do",
                  "minivl2 bench tiny --quantize int4 --json")
    sub.add_argument("model", nargs="?", metavar="NAME|DIR",
                     help=f"{', '.join(SIZES)}, with random weights, which are written to weights/ once; or a checkpoint "
                          "folder (default: as for ask)")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16",
                     help="numbers to compute with (default: %(default)s)")
    how_kept(sub)
    sub.add_argument("--threads", type=positive, metavar="N", help="of the processor (default: all)")
    sub.add_argument("--repeats", type=positive, default=5, metavar="N",
                     help="times that each figure is taken (default: %(default)s)")
    sub.add_argument("--words", type=positive, default=16, metavar="N",
                     help="words written for each figure of decoding (default: %(default)s)")
    sub.add_argument("--layers", type=positive, metavar="N",
                     help="of a named size, only so many layers: where the disk has no room for all")
    sub.add_argument("--alone", action="store_true", help="do not measure transformers beside it")
    sub.add_argument("--gains", action="store_true",
                     help="measure instead what each fast way buys: with it, and with the plain way in its place")
    sub.add_argument("--json", action="store_true", help="print everything as JSON in the last line")

    sub = command(shrink, "quantize", "Round a checkpoint's weights to 8 or 4 bits, and save it",
                  "minivl2 quantize weights/tiny int4 --to weights/tiny-int4")
    sub.add_argument("folder", type=Path, metavar="DIR", help="checkpoint folder")
    sub.add_argument("to_bits", choices=("int8", "int4"), help="how small")
    sub.add_argument("--to", type=Path, metavar="DIR", required=True, help="folder for the new one")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16",
                     help="numbers for what is not rounded (default: %(default)s)")

    sub = command(download, "download", "Fetch the published weights (6.7, 32 or 55 GB)", "minivl2 download tiny")
    sub.add_argument("size", choices=tuple(REPOSITORIES), help="which of the three models")
    sub.add_argument("--to", type=Path, metavar="DIR", help="folder to put them in (default: weights/SIZE)")
    return parser
