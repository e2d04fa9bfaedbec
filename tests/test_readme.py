"""What the README says is true: its commands, its tree, its numbers."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from minivl2 import Config, cli, cost, roofline

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
COMMANDS = [line.split("  #")[0].strip() for kind, block in BLOCKS if not kind for line in block.splitlines()
            if line.startswith((".venv", "make", "python3"))]


def test_make_has_the_targets_that_are_promised():
    promised = {command.split()[1] for command in COMMANDS if command.startswith("make")}
    assert promised == {"train", "test", "lessons"}
    for target in promised:
        assert re.search(rf"^{target}:", MAKEFILE, re.M)


def test_the_plain_commands_are_those_that_make_runs():
    recipes = MAKEFILE.replace("$(BIN)", ".venv/bin").replace("$(PYTHON)", "python3").replace("$(MINUTES)", "10")
    recipes = recipes.replace(" --quiet", "").replace("torchrun --standalone --nproc-per-node $(PROCESSES)", "python")
    for command in COMMANDS:
        if not command.startswith((".venv/bin/minivl2", "make")):
            assert command in recipes, command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(".venv/bin/minivl2")])
def test_every_minivl2_command_is_one_the_program_understands(command):
    options = cli._parser().parse_args(shlex.split(command)[1:])
    assert callable(options.command)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    example = next(block for kind, block in BLOCKS if kind == "python")
    monkeypatch.chdir(ROOT)
    example = example.replace("weights/toy", "tests/goldens/mla").replace("picture.png", "tests/goldens/mla/tall_0.png")
    exec(example.replace('["tests', 'max_new_tokens=4, images=["tests'), {})    # ours, and short: the model is untrained
    assert capsys.readouterr().out


def test_the_tree_names_every_module_and_nothing_else():
    tree = next(block for _, block in BLOCKS if block.startswith("minivl2/"))
    named = set(re.findall(r"^    (\w+(?:\.py|/))", tree, re.M))
    there = {p.name + "/" * p.is_dir() for p in (ROOT / "minivl2").iterdir() if not p.name.startswith((".", "__"))}
    assert named == there
    for top in re.findall(r"^(\w+(?:/|\.py))", tree, re.M):
        assert (ROOT / top).exists(), top


def test_the_table_of_models_is_what_inspect_says():
    for column, name in enumerate(("tiny", "small", "base"), start=1):
        config = Config.named(name)
        parts = cost.parts(config)
        lang = config.language

        def cell(row, column=column):
            line = next(line for line in README.splitlines() if line.startswith(f"| {row} |"))
            return line.split("|")[column + 1].strip()
        total = sum(p.total for p in parts)
        assert cell("parameters") == cost.readable(total)
        assert cell("activated per token") == cost.readable(sum(p.activated for p in parts))
        assert cell("attention") == ("latent" if lang.use_mla else "multi-head")
        assert cell("cache, numbers per token and layer") == f"{cost.cache_numbers(lang):,}"
        assert cell("weights in bfloat16") == cost.human(2 * total)
        routed = f"{lang.n_routed_experts} / {lang.num_experts_per_tok} / {lang.n_shared_experts}"
        assert cell("experts: routed / chosen / shared") == routed


def test_the_page_on_speed_counts_as_the_program_does_and_its_commands_are_understood():
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2:5] for line in page.splitlines() if line.startswith("| a ")}
    for column, name in enumerate(("tiny", "small", "base")):
        config = Config.named(name)
        wanted = (f"{roofline.vision_flops(config) / 1e12:.2f} T", f"{roofline.prompt_flops(config, 1024) / 1024e9:.2f} G",
                  f"{roofline.plain_word_bytes(config, 1024, torch.bfloat16) / 1e9:.2f} GB")
        assert tuple(row[column].strip() for row in rows.values()) == wanted
    commands = [line.split("#")[0] for line in page.splitlines() if line.startswith("minivl2 ")]
    assert len(commands) == 5
    for command in commands:
        assert callable(cli._parser().parse_args(shlex.split(command.split("|")[0])[1:]).command)
    for module in re.findall(r"`(\w+\.py)`", page):
        assert (ROOT / "minivl2" / module).exists(), module
    for module, name in re.findall(r"`(\w+)\.py`, `(\w+)`", page):
        assert f"def {name}(" in (ROOT / "minivl2" / f"{module}.py").read_text(encoding="utf-8"), name


def test_the_page_on_speed_tells_what_was_measured():
    """The table of docs/speed.md, from the lines that `minivl2 bench --json` ended with."""
    runs = [json.loads((ROOT / f"docs/bench/tiny-{name}.json").read_text()) for name in ("bfloat16", "pack", "int8", "int4")]
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in page.splitlines() if line.startswith("|")}
    for row, figure in (("looking, three tiles", "vision"), ("prompt of 1,024", "prompt"), ("word after 1,024", "decode")):
        fractions = [run["fraction"][figure] for run in runs] + [runs[0]["fraction"][f"transformers: {figure}"]]
        assert [int(cell.removesuffix(" %")) for cell in rows[row]] == pytest.approx([100 * f for f in fractions], abs=0.51)
    for row, figure in (("tiles a second", "vision"), ("prompt, tokens a second", "prompt"),
                        ("words a second after 1,024", "decode")):
        rates = [run["measured"][figure] for run in runs] + [runs[0]["measured"][f"transformers: {figure}"]]
        assert [float(cell) for cell in rows[row]] == pytest.approx([rate / rates[0] for rate in rates], abs=0.051)
    whole = [run["seconds"]["640 x 480 picture, 64 words"] for run in runs]
    told = [float(cell) for cell in rows["picture of 640 x 480, 64 words of answer: seconds"] if cell]
    assert told == pytest.approx([seconds / whole[0] for seconds in whole], abs=0.01)
    toys = [json.loads((ROOT / f"docs/bench/toy-{name}.json").read_text()) for name in ("bfloat16", "int8", "int4")]
    means = [100 * sum(toy["scores"].values()) / len(toy["scores"]) for toy in toys]
    assert [float(cell.removesuffix(" %")) for cell in rows["mean of its 26 scores"]] == pytest.approx(means, abs=0.051)
    overlaps = [toy["mean_iou"] for toy in toys]
    assert [float(cell) for cell in rows["mean IoU of its boxes"]] == pytest.approx(overlaps, abs=0.0051)
    against = [toy["against_plain"] for toy in toys[1:]]
    assert [float(cell.removesuffix(" %")) for cell in rows["same likeliest token"][1:]] == pytest.approx(
        [100 * one["same_likeliest"] for one in against], abs=0.051)
    assert [float(cell) for cell in rows["divergence from bfloat16, nats a token"][1:]] == pytest.approx(
        [one["kl"] for one in against], abs=0.000051)
    weights = [run["memory_gb"]["weights"] for run in runs]
    peaks = [run["memory_gb"]["peak"] for run in runs]
    for row, numbers in (("weights, GB", weights), ("most that was held, answering, GB", peaks)):
        assert [float(cell) for cell in rows[row] if cell] == pytest.approx(numbers, abs=0.051)


def test_the_page_on_speed_tells_what_each_change_bought_and_what_the_large_ones_hold():
    gains = json.loads((ROOT / "docs/bench/gains-tiny.json").read_text())["gains"]
    page = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    small = json.loads((ROOT / "docs/bench/small-int4.json").read_text())
    base = json.loads((ROOT / "docs/bench/base-int4-memory.json").read_text())
    for told in (
        *(f"| {g['phase']} | {g['change']} | {g['plain_seconds']:.2f} s | {g['seconds']:.2f} s | {g['times']:.2f} |"
          for g in gains),
        f"{small['measured']['decode']:.1f} words a second, holding {small['memory_gb']['peak']:.1f} GB at most",
        f"{base['peak_bytes'] / 1e9:.1f} GB at most for weights of {base['weights_bytes'] / 1e9:.1f} GB",
        f"64 words, in {base['whole']:.0f} seconds", f"wrote {base['measured decode']:.1f} words a second",
    ):
        assert told in page, told


def test_its_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://arxiv.org/") or (ROOT / target).exists(), target


def test_every_module_names_its_test_file_and_it_exists():
    for module in (ROOT / "minivl2").glob("[a-z]*.py"):
        named = re.findall(r"tests/test_\w+\.py", module.read_text(encoding="utf-8").split('"""')[1])
        assert named, module.name
        for test in named:
            assert (ROOT / test).exists(), f"{module.name} names {test}"


def test_the_toys_scores_are_those_of_its_evaluation():
    scores = json.loads((ROOT / "weights/toy/scores.json").read_text())
    told = (ROOT / "weights/README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (\d+) %", told, re.M))
    assert {name: int(percent) for name, percent in rows.items()} == {
        name: round(100 * right) for name, right in scores["scores"].items()}
    assert f"mean IoU {scores['mean_iou']:.2f}, {scores['iou_50']:.0%}".replace("%", " %") in told
    readme = " ".join(README.split())
    for name, words in (("count", "counts in {} of pictures"), ("read", "({} of texts"), ("table", "({} of table cells"),
                        ("chart", "{} of values in charts")):
        assert words.format(f"{scores['scores'][name]:.0%}".replace("%", " %")) in readme
    ten = {name: round(100 * right) for name, right in json.loads(
        (ROOT / "docs/bench/ten-minutes.json").read_text())["scores"].items()}
    for told in (f"shapes and colours ({ten['shape']} and {ten['colour']} % right", f"sizes ({ten['size']} %)",
                 f"something is there ({ten['exists']} %)", f"what is where ({ten['relation']} %)",
                 f"how many things ({ten['count']} %)", f"point at one thing ({ten['box']} %",
                 f"all of a kind ({ten['boxes']} %)"):
        assert told in readme, told


def test_the_toy_is_whole_and_small(capsys):
    """Exactly the tensors that its config.json implies, and 20 MB at most."""
    assert cli.main(["verify", str(ROOT / "weights/toy")]) in (0, None)
    assert sum(file.stat().st_size for file in (ROOT / "weights/toy").iterdir()) < 20e6
