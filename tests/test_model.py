"""The whole model: pictures in their places, the loss, and the gradients."""

import dataclasses
import subprocess
import sys

import pytest
import reference
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minivl2.batch import IGNORED
from minivl2.config import Config, ConfigError
from minivl2.model import DeepSeekVL2, build

KINDS = {"multi-head": small.MULTI_HEAD, "latent": {}, "sigmoid": small.SIGMOID, "groups": small.GROUPS}
each_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(kind="latent", seed=0, **changes):
    return small.randomised(DeepSeekVL2(small.config(**KINDS[kind], **changes)), seed)


def talks(processor, training=False):
    """Three conversations of different lengths: with one tiled image, with two, and with none."""
    answers = [{"role": "assistant", "content": "the fox is here"}] * training
    return [
        processor([{"role": "user", "content": text}, *answers], images, training)
        for text, images in (
            ("<image> what is it?", [small.picture(80, 40)]),
            ("<image><image>", [small.picture(42, 42, seed=1), small.picture(30, 120, seed=2)]),
            ("how many?", []),
        )
    ]


def line_of(model, tiles, grid):
    """What one image becomes, by the reference alone."""
    w, vision = model.state_dict(), model.config.vision
    seen = torch.stack([
        reference.vision_tower(tile.double(), reference.part(w, "vision"), vision.patch_size, vision.heads, vision.layers)
        for tile in tiles])
    squeezed = reference.projector(seen, reference.part(w, "projector"))
    return reference.lay_out(squeezed, grid, w["image_newline"], w["view_separator"])


@torch.no_grad()
def test_every_image_stands_where_its_tokens_are_and_words_everywhere_else(processor):
    model, together = model_of(), processor.batch(talks(processor))
    assert together.grids.tolist() == [[2, 1], [1, 1], [1, 3]]
    lines = [line_of(model, tiles, grid) for tiles, grid in zip(
        together.tiles.split([3, 2, 4]), [(2, 1), (1, 1), (1, 3)], strict=True)]
    of_row = [iter(lines[0]), iter(torch.cat(lines[1:])), iter(())]
    x = model.embed(together)
    for b, row in enumerate(together.input_ids):
        for t, token in enumerate(row):
            if together.image_mask[b, t]:
                want = next(of_row[b])
            else:
                want = model.decoder.embed.weight[token]
            assert_close(x[b, t], want, atol=1e-6, rtol=1e-6)
        assert next(of_row[b], None) is None


@torch.no_grad()
@each_kind
def test_logits_are_head_times_decoder_times_embeddings(processor, kind):
    model = model_of(kind)
    batch = processor(small.ask("how many?"))
    w = model.state_dict()
    x = torch.stack([w["decoder.embed.weight"][i] for i in batch.input_ids[0]])[None]
    hidden = reference.decoder(x, reference.part(w, "decoder"), model.config.language, batch.attention_mask)
    want = torch.stack([w["decoder.head.weight"] @ h for h in hidden[0]])
    assert_close(model(batch)[0], want)


@torch.no_grad()
@each_kind
def test_a_padded_batch_gives_what_its_members_give_alone(processor, kind):
    model, alone = model_of(kind), talks(processor)
    together = model(processor.batch(alone))
    assert together.isfinite().all()
    for row, batch in zip(together, alone, strict=True):
        assert_close(row[-batch.input_ids.shape[1]:], model(batch)[0])


@pytest.mark.parametrize("more", [1, -1])
def test_a_text_with_more_or_fewer_gaps_than_the_images_fill_is_refused(processor, more):
    model, batch = model_of(), talks(processor)[0]
    mask, vectors = batch.image_mask.clone(), reference.visual_token_count(2, 1, side=2)
    place = mask[0].nonzero()[0] - int(more > 0)
    mask[0, place] = more > 0
    with pytest.raises(ValueError, match=f"room for {vectors + more} visual tokens, but the images have {vectors}"):
        model(dataclasses.replace(batch, image_mask=mask))


# ------------------------------------------------------------------------------------------ the loss


@torch.no_grad()
@each_kind
@settings(max_examples=5)
@given(st.integers(0, 99))
def test_the_loss_is_text_plus_alpha_times_balance(processor, kind, seed):
    """Cross-entropy of the labelled tokens, and the balance loss of every layer without the padding."""
    model, batch = model_of(kind, seed), processor.batch(talks(processor, training=True))
    loss, lang = model.loss(batch), model.config.language
    (B, T), E, K = batch.input_ids.shape, lang.n_routed_experts, lang.num_experts_per_tok
    text = reference.cross_entropy(model(batch), batch.labels, batch.attention_mask)
    balance = sum(
        reference.balance_loss(r.scores.view(B, T, E).tolist(), r.experts.view(B, T, K).tolist(),
                               batch.attention_mask.tolist())
        for r in loss.routings)
    assert len(loss.routings) == 2      # of three layers the first is dense
    assert loss.text.item() == pytest.approx(text, rel=1e-5)       # the logits are taken in float32
    assert loss.balance.item() == pytest.approx(balance, rel=1e-5)
    assert loss.total.item() == pytest.approx(text + 0.5 * balance, rel=1e-5)


@torch.no_grad()
def test_the_balance_is_taken_over_the_batch_where_the_configuration_says_so(processor):
    model = model_of(seq_aux=False)
    batch = processor.batch(talks(processor, training=True))
    loss, (B, T) = model.loss(batch), batch.input_ids.shape
    want = sum(
        reference.balance_loss(r.scores.view(B, T, 4).tolist(), r.experts.view(B, T, 2).tolist(),
                               batch.attention_mask.tolist(), per_sequence=False)
        for r in loss.routings)
    assert loss.balance.item() == pytest.approx(want, rel=1e-5)


@torch.no_grad()
def test_a_model_without_experts_has_a_loss_too(processor):
    model, batch = model_of(n_routed_experts=None), talks(processor, training=True)[0]
    loss = model.loss(batch)
    assert loss.balance == 0 and loss.total == loss.text


@each_kind
def test_every_parameter_learns(processor, kind):
    """One image and one answer reach them all, but for experts that nobody visited. (The vision tower's last 6 pixels
    of 384 would not be seen; here 42 pixels are 3 patches exactly.)"""
    model, batch = model_of(kind), processor.batch(talks(processor, training=True))
    loss = model.loss(batch)
    loss.total.backward()
    visited = [r.experts.unique().tolist() for r in loss.routings]
    for name, p in model.named_parameters():
        if ".experts." in name:
            layer, expert = int(name.split(".")[2]), int(name.split(".")[5])
            if expert not in visited[layer - 1]:
                continue
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_the_balance_loss_teaches_only_the_way_to_and_through_the_gates(processor):
    model, batch = model_of(), talks(processor, training=True)[0]
    (model.loss(batch).total - model.loss(batch).text).backward()
    gates = [layer.mlp.gate.weight.grad for layer in model.decoder.layers[1:]]
    assert all(g.any() for g in gates)
    assert not model.decoder.head.weight.grad.any()
    for p in model.decoder.layers[2].mlp.experts.parameters():      # nothing is scored after the last experts
        assert p.grad is None or not p.grad.any()


def test_only_answers_and_their_ends_are_learned(processor):
    """A change of what an ignored token is to be followed by changes nothing; a change of a learned one does."""
    model, batch = model_of(), talks(processor, training=True)[0]
    learned = (batch.labels[0] != IGNORED).nonzero().flatten().tolist()
    assert learned[0] == 0      # the begin token: never asked for, as nothing comes before it
    with torch.no_grad():
        loss = model.loss(batch).text
        for place in (0, learned[-1]):
            labels = batch.labels.clone()
            labels[0, place] = 100
            same = model.loss(dataclasses.replace(batch, labels=labels)).text == loss
            assert same == (place == 0)


@torch.no_grad()
def test_a_padded_batch_learns_what_its_members_would_learn_alone(processor):
    """The begin token has a label. Padded, it has something before it; that must not become a lesson."""
    model, members = model_of(), talks(processor, training=True)
    answers = [int((b.labels[:, 1:] != IGNORED).sum()) for b in members]
    alone = sum(model.loss(b).text * n for b, n in zip(members, answers, strict=True)) / sum(answers)
    assert_close(model.loss(processor.batch(members)).text, alone, rtol=1e-6, atol=0)


@torch.no_grad()
def test_the_loss_is_taken_in_float32_even_of_a_model_in_bfloat16(processor):
    """In bfloat16 a sum over 129,280 probabilities has two digits."""
    loss = model_of().bfloat16().loss(talks(processor, training=True)[0])
    assert (loss.text.dtype, loss.each.dtype) == (torch.float32, torch.float32)


@torch.no_grad()
def test_what_each_token_costs_is_told_row_after_row(processor):
    model, members = model_of(), talks(processor, training=True)
    alone = torch.cat([model.loss(b).each for b in members])
    assert_close(model.loss(processor.batch(members)).each, alone, rtol=1e-5, atol=1e-6)


def test_a_batch_without_labels_has_no_loss(processor):
    with pytest.raises(ValueError, match="no labels: make it with .*training=True"):
        model_of().loss(talks(processor)[0])


# ------------------------------------------------------------------------------------------ building


def test_a_model_is_built_from_a_name_a_dictionary_or_a_config():
    shapes = []
    with torch.device("meta"):
        for source in ("toy", Config.named("toy").to_dict(), Config.named("toy")):
            shapes.append({n: p.shape for n, p in build(source).named_parameters()})
    assert shapes[0] == shapes[1] == shapes[2]
    with pytest.raises(ConfigError, match="no size is called 'huge'; there are toy, tiny, small, base"):
        build("huge")


def test_a_model_to_be_filled_is_built_without_drawing_or_getting_ready_to():
    """In a fresh process, as here others may have got torch ready already."""
    script = """if True:
        import sys, torch
        from minivl2.model import NothingDrawn, build
        torch.manual_seed(0)
        with torch.device("meta"), NothingDrawn():
            model = build("toy")
        assert "torch._dynamo" not in sys.modules
        empties = torch.empty, torch.empty_like     # whatever stood in the memory: nobody may draw until it looks drawn
        torch.empty, torch.empty_like = (
            lambda *inputs, called=called, **options: called(*inputs, **options).fill_(9) for called in empties)
        with NothingDrawn():
            build("toy")
        torch.empty, torch.empty_like = empties
        first = torch.rand(1)
        torch.manual_seed(0)
        assert torch.rand(1) == first
        shapes = {name: t.shape for name, t in model.state_dict().items()}
        assert shapes == {name: t.shape for name, t in build("toy").state_dict().items()}
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


@torch.no_grad()
def test_a_fresh_model_guesses_every_token_about_equally_likely(processor):
    """The initial weights make sense: a loss near ln(448), and no infinity."""
    torch.manual_seed(0)
    model = build(small.config())
    loss = model.loss(talks(processor, training=True)[0]).text.item()
    assert abs(loss - 6.1) < 0.7


@torch.no_grad()
def test_the_model_runs_in_bfloat16_close_to_float64(processor):
    """(Without experts: a rounded score may choose others.)"""
    batch = processor(small.ask("how many shapes are there?"))
    exact, rough = model_of(n_routed_experts=None)(batch), model_of(n_routed_experts=None).bfloat16()(batch)
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - exact).abs().mean() < 0.05 * exact.abs().mean()


@torch.no_grad()
def test_tiles_in_float32_are_seen_by_a_model_in_bfloat16(processor):
    """Not the other way round: rounded to integers, or left to torch, they would be zeros or an error."""
    batch = talks(processor)[0]
    exact, rough = model_of().embed(batch), model_of().bfloat16().embed(batch)
    assert (rough.double() - exact).abs().mean() < 0.15 * exact.abs().mean()
