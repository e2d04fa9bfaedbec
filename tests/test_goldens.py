"""Everything together: four miniature checkpoints must give what the published implementation gave (goldens/README.md)."""

import functools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close

from minivl2.batch import IGNORED
from minivl2.cache import Cache
from minivl2.generation import generate
from minivl2.model import build
from minivl2.names import published_names
from minivl2.weights import load, save

FOLDER = Path(__file__).parent / "goldens"
CHECKPOINTS = ["mha", "mla", "mla_sigmoid", "group"]
CASES = ["one_image", "tall", "two_images", "three_images", "text_only", "multi_turn"]

each_checkpoint = pytest.mark.parametrize("name", CHECKPOINTS)
each_case = pytest.mark.parametrize("case", CASES)
close = functools.partial(assert_close, atol=2e-4, rtol=0)


@functools.cache
def checkpoint(name):
    """(model, processor, what the reference implementation answered, the cases)"""
    cases = json.loads((FOLDER / name / "cases.json").read_text(encoding="utf-8"))
    return *load(FOLDER / name), load_file(FOLDER / name / "expected.safetensors"), cases


def expected(name, key):
    return checkpoint(name)[2][key]


@functools.cache
def prompt(name, case, training=False):
    _, processor, _, cases = checkpoint(name)
    return processor(cases[case]["messages"], [FOLDER / name / file for file in cases[case]["images"]], training)


@functools.cache
def pair(name):
    _, processor, _, cases = checkpoint(name)
    return processor.batch([prompt(name, case) for case in cases["batch"]["of"]])


@functools.cache
@torch.no_grad()
def read(name, case):
    """(embeddings, final hidden state) of a prompt, or of the padded pair, in one pass."""
    model, batch = checkpoint(name)[0], pair(name) if case == "pair" else prompt(name, case)
    x = model.embed(batch)
    return x, model.decoder(x, batch.attention_mask)[0]


@torch.no_grad()
def read_in_chunks(name, case, chunk):
    model, batch = checkpoint(name)[0], pair(name) if case == "pair" else prompt(name, case)
    x, T = read(name, case)[0], batch.input_ids.shape[1]
    cache = Cache(model.config.language.num_hidden_layers, T)
    parts = [model.decoder(x[:, part], batch.attention_mask[:, part], cache)[0] for part in torch.arange(T).split(chunk)]
    return torch.cat(parts, dim=1)


def up_to_the_end(ids, end=1):
    ids = ids.tolist()
    return ids[: ids.index(end) + 1] if end in ids else ids


# ------------------------------------------------------------------------------------------ what goes in


@each_checkpoint
@each_case
def test_the_prompt_is_the_same(name, case):
    batch = prompt(name, case)
    assert batch.input_ids[0].tolist() == expected(name, f"{case}.input_ids").tolist()
    assert batch.image_mask[0].tolist() == expected(name, f"{case}.images_seq_mask").bool().tolist()
    assert batch.attention_mask.all()
    if case == "text_only":     # the published processor invents an empty image here; ours has none
        assert len(batch.grids) == len(batch.tiles) == 0
    else:
        assert batch.grids.tolist() == expected(name, f"{case}.images_spatial_crop").tolist()


# Nothing about images or words differs between the four checkpoints, so one of them is enough for the pixels.
@pytest.mark.parametrize("case", [case for case in CASES if case != "text_only"])
def test_the_pixels_are_the_same(case):
    tiles = prompt("mla", case).tiles.flatten(1)
    mean, std = expected("mla", f"{case}.pixel_mean_std")
    assert_close(tiles.mean(1), mean, atol=1e-6, rtol=0)
    assert_close(tiles.std(1), std, atol=1e-6, rtol=0)
    assert_close(tiles[:, ::9973], expected("mla", f"{case}.pixel_sample"), atol=1e-6, rtol=0)


@each_checkpoint
def test_the_training_targets_are_the_same(name):
    """Also the first: the published processor leaves the begin token as its own target."""
    batch = prompt(name, "training", training=True)
    assert batch.input_ids[0].tolist() == expected(name, "training.input_ids").tolist()
    assert batch.labels[0].tolist() == expected(name, "training.target_ids").tolist()
    assert batch.labels[0, 0] == batch.input_ids[0, 0] != IGNORED


@each_checkpoint
def test_the_padded_batch_is_the_same(name):
    batch = pair(name)
    assert batch.input_ids.tolist() == expected(name, "batch.input_ids").tolist()
    assert batch.attention_mask.tolist() == expected(name, "batch.attention_mask").bool().tolist()


# ------------------------------------------------------------------------------------------ what comes out


@torch.no_grad()
@each_checkpoint
@each_case
def test_embeddings_hidden_states_and_logits_are_the_same(name, case):
    x, hidden = read(name, case)
    close(x[0, :, :8], expected(name, f"{case}.inputs_embeds_tail"))
    close(hidden[0, -8:], expected(name, f"{case}.hidden_last"))
    close(checkpoint(name)[0].decoder.head(hidden[0, -8:]), expected(name, f"{case}.logits_last"))


@torch.no_grad()
@each_checkpoint
@pytest.mark.parametrize("case", ["one_image", "two_images", "three_images", "text_only", "multi_turn"])
def test_greedy_answers_are_the_same(name, case):
    answer = generate(checkpoint(name)[0], prompt(name, case), max_new_tokens=16)
    assert up_to_the_end(answer[0]) == up_to_the_end(expected(name, f"{case}.generated"))


@torch.no_grad()
@each_checkpoint
def test_a_padded_batch_is_answered_as_its_members_are_alone(name):
    model, cases = checkpoint(name)[0], checkpoint(name)[3]["batch"]["of"]
    _, hidden = read(name, "pair")
    close(model.decoder.head(hidden[:, -4:]), expected(name, "batch.logits_last"))
    answers = generate(model, pair(name), max_new_tokens=16)
    for row, case in enumerate(cases):
        alone = read(name, case)[1][0]
        close(hidden[row, -len(alone):], alone)
        assert up_to_the_end(answers[row]) == up_to_the_end(expected(name, f"{case}.generated"))
        assert up_to_the_end(answers[row]) == up_to_the_end(expected(name, "batch.generated")[row])


# ------------------------------------------------------------------------------------------ reading and writing in steps


@each_checkpoint
@pytest.mark.parametrize("case, chunk", [
    ("text_only", 1), ("multi_turn", 7), ("one_image", 100), ("two_images", 300), ("pair", 100), ("pair", 300)])
def test_a_prompt_read_in_chunks_is_the_prompt_read_at_once(name, case, chunk):
    got, (_, want) = read_in_chunks(name, case, chunk), read(name, case)
    real = pair(name).attention_mask if case == "pair" else slice(None)     # what padding thinks is nobody's business
    close(got[real], want[real])
    assert got.isfinite().all()


@settings(max_examples=3)
@given(st.sampled_from(CHECKPOINTS), st.integers(20, 900))
def test_the_padded_batch_can_be_read_in_chunks_of_any_size(name, chunk):
    got, (_, want) = read_in_chunks(name, "pair", chunk), read(name, "pair")
    real = pair(name).attention_mask
    close(got[real], want[real])


@torch.no_grad()
@each_checkpoint
@pytest.mark.parametrize("case", ["text_only", "pair"])
def test_writing_with_a_cache_is_reading_everything_again(name, case):
    """The answer's tokens one by one, each remembered, and then prompt and answer in a single pass."""
    model, batch = checkpoint(name)[0], pair(name) if case == "pair" else prompt(name, case)
    x, T = read(name, case)[0], batch.input_ids.shape[1]
    answer = model.decoder.embed(torch.randint(10, 400, (len(batch), 6)))
    real = torch.ones(len(batch), 6, dtype=torch.bool)

    cache = Cache(model.config.language.num_hidden_layers, T + 6)
    model.decoder(x, batch.attention_mask, cache)
    written = [model.decoder(answer[:, i:i + 1], real[:, i:i + 1], cache)[0] for i in range(6)]
    again, _ = model.decoder(torch.cat((x, answer), dim=1), torch.cat((batch.attention_mask, real), dim=1))
    close(torch.cat(written, dim=1), again[:, T:])


# ------------------------------------------------------------------------------------------ saving


def in_memory(model):
    """A copy whose weights are not views of a file. How a view is aligned depends on the file, and the last bit of a
    matrix product on the alignment."""
    with torch.device("meta"):
        copy = build(model.config)
    copy.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)
    return copy


@torch.no_grad()
@each_checkpoint
def test_what_is_saved_is_loaded_bit_for_bit(name, tmp_path):
    model, processor = checkpoint(name)[:2]
    save(model, processor, tmp_path)
    again, processor_again = load(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert published_names(again) == published_names(model)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, again.unused[n]) for n, t in model.unused.items())
    batch = prompt(name, "text_only")
    assert torch.equal(in_memory(again)(batch), in_memory(model)(batch))
    messages = checkpoint(name)[3]["text_only"]["messages"]
    assert torch.equal(processor_again(messages).input_ids, batch.input_ids)
