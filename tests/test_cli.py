"""The command line, as a stranger types it."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from minivl2 import cli
from minivl2.grounding import Box

GOLDEN = "tests/goldens/mla"
PICTURE = f"{GOLDEN}/one_image_0.png"


def run(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "minivl2", "inspect", "tiny"], capture_output=True, text=True)
    assert done.returncode == 0 and "3.3705 B" in done.stdout and "0.9947 B" in done.stdout


@pytest.mark.parametrize("command", ["ask", "xray", "play", "inspect", "verify", "eval", "bench", "quantize", "download"])
def test_every_command_explains_itself_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and f"minivl2 {command}" in out.split("Example:")[1]


def test_ask_prints_what_the_reference_answers(capsys):
    """The golden question; the answer is what `generate` gives, which test_goldens compares with the reference."""
    import minivl2
    question = "<|ref|>The giraffe at the back.<|/ref|>."
    status, out, _ = run(capsys, "ask", PICTURE, question, "--weights", GOLDEN, "--max-new-tokens", 8)
    model, processor = minivl2.load(GOLDEN)
    batch = processor([{"role": "user", "content": f"<image>\n{question}"}], [PICTURE])
    wanted = processor.decode(minivl2.generate(model, batch, 8)[0].tolist())
    assert status == 0 and out.rstrip("\n") == wanted


def test_ask_answers_several_questions_as_each_alone(capsys):
    questions = ["what is it?", "where is the giraffe?", "why"]
    alone = [run(capsys, "ask", PICTURE, q, "--weights", GOLDEN, "--max-new-tokens", 5)[1].rstrip("\n") for q in questions]
    status, out, _ = run(capsys, "ask", PICTURE, *questions, "--weights", GOLDEN, "--max-new-tokens", 5)
    assert status == 0 and out == "".join(f"{q}\n    {a}\n" for q, a in zip(questions, alone, strict=True))


def test_the_boxes_of_several_answers_are_drawn_on_several_pictures(capsys, monkeypatch, tmp_path):
    answers = ["none", "<|ref|>it<|/ref|><|det|>[[0, 0, 500, 500]]<|/det|>"]
    monkeypatch.setattr(cli, "answer_each", lambda *args, **options: answers)
    run(capsys, "ask", PICTURE, "what?", "where?", "--weights", GOLDEN, "--output", tmp_path / "found.png")
    assert [file.name for file in tmp_path.iterdir()] == ["found-2.png"]


@pytest.mark.parametrize("words, images", [
    (["what?"], 0), (["a.png"], 0), ([PICTURE, "what?"], 1), ([PICTURE, PICTURE, "what?", "where?"], 2),
    (["nowhere.JPG", "what?"], 1), (["Makefile", "what?"], 1), (["what?", "where?"], 0), (["is this a.b c?", "x"], 0)])
def test_images_are_told_from_questions(words, images):
    assert cli.images_and_questions(words) == (words[:images], words[images:])


def test_ask_draws_the_boxes_of_the_answer(capsys, monkeypatch, tmp_path):
    answer = ["<|ref|>it<|/ref|>", "<|det|>[[0, 0, 500, 500]]<|/det|>"]
    monkeypatch.setattr(cli, "stream", lambda *args, **options: iter(answer))
    target = tmp_path / "found.png"
    status, out, err = run(capsys, "ask", PICTURE, "where?", "--weights", GOLDEN, "--output", target)
    assert status == 0 and out == "".join(answer) + "\n" and "1 box drawn" in err
    drawn, plain = Image.open(target), Image.open(PICTURE).convert("RGB")
    assert drawn.size == plain.size
    x, y, *_ = Box("it", 0, 0, 500, 500).pixels(plain.size)
    assert drawn.getpixel((x, y + 30)) != plain.getpixel((x, y + 30))       # the left side of the box


def test_xray_prints_the_answer_and_writes_one_page(capsys, tmp_path):
    target = tmp_path / "page.html"
    status, out, err = run(capsys, "xray", PICTURE, "what is it?", "--weights", GOLDEN, "--max-new-tokens", 4, "-o", target)
    _, wanted, _ = run(capsys, "ask", PICTURE, "what is it?", "--weights", GOLDEN, "--max-new-tokens", 4)
    page = target.read_text(encoding="utf-8")
    assert status == 0 and out == wanted and f"{target}: every step" in err
    assert "one_image_0.png" in page and str(target.parent) not in page


def test_images_can_be_placed_in_the_question(capsys, monkeypatch):
    asked = {}

    def remember(model, processor, messages, *rest, **options):
        asked["text"] = messages[0]["content"]
        return []
    monkeypatch.setattr(cli, "stream", remember)
    run(capsys, "ask", PICTURE, PICTURE, "is <image> like <image>?", "--weights", GOLDEN)
    assert asked["text"] == "is <image> like <image>?"
    run(capsys, "ask", PICTURE, PICTURE, "are they alike?", "--weights", GOLDEN)
    assert asked["text"] == "<image>\n<image>\nare they alike?"


@pytest.mark.parametrize("arguments, words", [
    (("ask", "nowhere.png", "what?", "--weights", GOLDEN), "nowhere.png does not exist"),
    (("ask", "Makefile", "what?", "--weights", GOLDEN), "not an image"),
    (("ask", "what?", "--weights", "nowhere"), "not a folder"),
    (("ask", "what?", PICTURE, "where?", "--weights", GOLDEN), "stands after a question. First all images"),
    (("ask", PICTURE, "<image> and <image>?", "--weights", GOLDEN), "2 <image>, but 1 images"),
    (("xray", PICTURE, "what?", "--weights", GOLDEN, "-o", "nowhere/x.html"), "nowhere is not a folder"),
    (("inspect", "nowhere"), "does not exist"),
    (("verify", "tests"), "no config.json"),
    (("ask", "what?", "--weights", GOLDEN, "--pack"), "only weights in bfloat16 are packed"),
    (("ask", "what?", "--weights", GOLDEN, "--temperature", "-1"), "temperature cannot be -1"),
])
def test_a_mistake_gets_one_clear_line(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert status == 1 and out.strip() == ""
    assert words in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_a_quantised_checkpoint_is_written_and_asked(capsys, tmp_path):
    status, out, _ = run(capsys, "quantize", GOLDEN, "int8", "--to", tmp_path / "small", "--dtype", "float32")
    assert status == 0 and "weights of 8 bits" in out
    asked = [run(capsys, "ask", PICTURE, "what?", "--weights", folder, "--max-new-tokens", 6, *how)
             for folder, *how in ((GOLDEN, "--quantize", "int8"), (tmp_path / "small",))]
    assert asked[0] == asked[1] and asked[0][0] == 0
    status, _, err = run(capsys, "ask", "what?", "--weights", tmp_path / "small", "--quantize", "int4")
    assert status == 1 and "holds weights of 8 bits already" in err


def test_verify_says_that_a_checkpoint_is_whole(capsys):
    status, out, _ = run(capsys, "verify", GOLDEN)
    assert status == 0 and "is whole" in out


def test_download_without_a_network_says_what_to_do_by_hand(capsys, monkeypatch, tmp_path):
    """Whether or not the hub client is installed; the network is taken away."""
    import socket

    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    status, _, err = run(capsys, "download", "tiny", "--to", tmp_path / "tiny")
    assert status == 1 and "By hand: put config.json" in err and len(err.strip().splitlines()) == 1


def test_download_without_the_hub_client_says_how_to_get_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)       # makes its import fail
    status, _, err = run(capsys, "download", "tiny", "--to", tmp_path / "tiny")
    assert status == 1 and "pip install 'minivl2[download]'" in err and "By hand" in err


def test_download_fetches_only_what_is_needed(capsys, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="the hub client is an optional dependency")
    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda repository, **options: asked.update(options, repository=repository))
    status, out, _ = run(capsys, "download", "tiny", "--to", tmp_path)
    assert status == 0 and "minivl2 verify" in out
    assert asked["repository"] == "deepseek-ai/deepseek-vl2-tiny" and asked["local_dir"] == tmp_path
    assert set(asked["allow_patterns"]) == {"*.json", "*.safetensors"}      # never code, never pickles


def test_without_weights_the_message_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "HOUSE", tmp_path)
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "ask", "what?")
    assert status == 1 and "make train" in err


def test_a_model_just_trained_is_found_but_weights_toy_comes_first(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "HOUSE", tmp_path)
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/toy/model", "weights/toy"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").touch()
        assert cli.default_weights() == tmp_path / folder


def test_eval_prints_scores_as_its_last_line(capsys, monkeypatch):
    from minivl2.training import evaluation
    monkeypatch.setattr(evaluation, "LONGEST_ANSWER", 4)
    status, out, _ = run(capsys, "eval", GOLDEN, "--kinds", "scenes", "--per-task", 2, "--json")
    result = json.loads(out.splitlines()[-1])
    assert status == 0 and set(result) == {"scores", "guess", "n", "mean_iou", "iou_50"}
    assert result["n"]["count"] == 2 and 0 <= result["scores"]["count"] <= 1
    status, out, _ = run(capsys, "eval", GOLDEN, "--kinds", "scenes", "--per-task", 1, "--quantize", "int8", "--json")
    alike = json.loads(out.splitlines()[-1])["against_plain"]
    assert status == 0 and alike["kl"] > 0 and 0 <= alike["same_likeliest"] <= 1 and "against the weights as they are" in out


def test_a_checkpoint_is_not_rounded_over_itself(capsys):
    status, _, said = run(capsys, "quantize", GOLDEN, "int8", "--to", f"{GOLDEN}/../mla")
    assert status == 1 and "name another folder with --to" in said
