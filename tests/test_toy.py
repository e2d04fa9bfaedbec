"""weights/toy, the toy that comes with the project: what it holds, that another implementation computes the same from it,
and that it answers about pictures that its own world did not draw."""

from pathlib import Path

import pytest
import reference
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from test_decoder import their_decoder
from torch.testing import assert_close

import minivl2

TOY = Path(__file__).resolve().parents[1] / "weights/toy"


@pytest.fixture(scope="module")
def toy():
    return minivl2.load(TOY)


def test_its_tensors_are_exactly_those_its_configuration_implies():
    config = minivl2.Config.from_file(TOY / "config.json")
    with torch.device("meta"):
        names = minivl2.published_names(minivl2.build(config))
    assert {name: tuple(tensor.shape) for name, tensor in load_file(TOY / "model.safetensors").items()} == names
    assert minivl2.verify(TOY) == []


# ------------------------------------------------------------------------------------------ another implementation


def part(w, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}


def their_tower(cfg, w):
    """SigLIP as transformers has it, with the published tensors."""
    pytest.importorskip("transformers", reason="compares with a maintained implementation")
    from transformers.models.siglip import modeling_siglip as theirs
    tower = theirs.SiglipVisionModel(theirs.SiglipVisionConfig(
        hidden_size=cfg.width, intermediate_size=cfg.mlp_width, num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads,
        image_size=cfg.image_size, patch_size=cfg.patch_size, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
        vision_use_head=False))
    renamed = {}
    for name, tensor in w.items():
        for published, other in (("blocks.", "encoder.layers."), ("patch_embed.proj.", "embeddings.patch_embedding."),
                                 (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."),
                                 (".attn.proj.", ".self_attn.out_proj.")):
            name = name.replace(published, other)
        if name.startswith("attn_pool."):
            continue
        if ".attn.qkv." in name:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv.", f".self_attn.{letter}_proj.")] = third
        elif name == "pos_embed":
            renamed["embeddings.position_embedding.weight"] = tensor[0]
        else:
            renamed["post_layernorm" + name[4:] if name.startswith("norm.") else name] = tensor
    inside = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    tower.load_state_dict({inside + name: tensor for name, tensor in renamed.items()}, strict=True)
    return tower.eval()


def their_language_model(cfg, w):
    """DeepSeek-V2 as transformers has it. It calls everything by its published name, but stacks the experts."""
    decoder = their_decoder(cfg).eval()
    named = {name: tensor for name, tensor in w.items() if ".experts." not in name}
    for layer in filter(cfg.is_moe, range(cfg.num_hidden_layers)):
        def all_of(matrix, experts=f"layers.{layer}.mlp.experts"):
            return torch.stack([w[f"{experts}.{e}.{matrix}_proj.weight"] for e in range(cfg.n_routed_experts)])
        named[f"layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat((all_of("gate"), all_of("up")), dim=1)
        named[f"layers.{layer}.mlp.experts.down_proj"] = all_of("down")
    decoder.load_state_dict(named, strict=True)
    return decoder


@torch.no_grad()
@pytest.mark.parametrize("size", [(56, 56), (100, 50), (105, 160)])
def test_another_implementation_gives_the_same_logits(toy, size):
    """transformers has no DeepSeek-VL2, but its SigLIP and its DeepSeek-V2; what joins them is joined here by loops."""
    model, processor = toy
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(picture).ellipse((10, 12, 30, 32), fill="red")
    batch = processor([{"role": "user", "content": "<image>\nwhat colour is the circle?"}], [picture])

    w = load_file(TOY / "model.safetensors")
    seen = their_tower(model.config.vision, part(w, "vision."))(pixel_values=batch.tiles).last_hidden_state
    seen = reference.projector(seen, part(w, "projector."))
    line = reference.lay_out(seen, batch.grids[0], w["image_newline"], w["view_seperator"])
    x = w["language.model.embed_tokens.weight"][batch.input_ids]
    x[batch.image_mask] = line
    decoder = their_language_model(model.config.language, part(w, "language.model."))
    theirs = decoder(inputs_embeds=x).last_hidden_state @ w["language.lm_head.weight"].T

    assert_close(model(batch), theirs, atol=2e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------ pictures drawn by hand


def drawn(size, background, *things):
    """A picture of things with soft edges, in nobody's rows: (shape, colour, middle x, middle y, radius)."""
    fine = 4
    picture = Image.new("RGB", (size[0] * fine, size[1] * fine), background)
    pen = ImageDraw.Draw(picture)
    for shape, colour, x, y, r in things:
        x, y, r = x * fine, y * fine, r * fine
        if shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        elif shape == "triangle":
            pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
        elif shape == "diamond":
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=colour)
        elif shape == "cross":
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
            pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
    return picture.resize(size, Image.Resampling.LANCZOS)


BY_HAND = (
    (drawn((56, 56), (122, 118, 120), ("circle", "crimson", 13, 14, 6), ("square", "royalblue", 40, 16, 8)), {
        "how many things are there?": "2", "what colour is the circle?": "red", "what shape is the blue thing?": "square",
        "do you see a red circle?": "yes", "do you see a green square?": "no", "largest thing?": "blue square",
        "what is left of the square?": "red circle", "is the circle big or small?": "small",
        "describe the picture.": "small red circle, big blue square"}),
    (drawn((54, 50), (140, 130, 125), ("triangle", "gold", 15, 34, 8), ("diamond", "white", 40, 14, 6)), {
        "how many things are there?": "2", "colour of the triangle?": "yellow", "shape of the white thing?": "diamond",
        "do you see a white diamond?": "yes", "do you see a black diamond?": "no",
        "which thing is biggest?": "yellow triangle", "size of the diamond?": "small"}),
    (drawn((50, 56), (110, 120, 130), ("cross", "black", 25, 28, 9)), {
        "how many things do you see?": "1", "what shape is the black thing?": "cross", "colour of the cross?": "black",
        "do you see a purple cross?": "no", "describe the picture.": "big black cross"}),
    (drawn((56, 54), (125, 125, 125), ("square", "darkorange", 12, 12, 6), ("circle", "forestgreen", 40, 13, 8),
           ("triangle", "darkorchid", 28, 41, 8)), {
        "count the things.": "3", "colour of the square?": "orange", "shape of the green thing?": "circle",
        "the triangle has which colour?": "purple", "do you see an orange square?": "yes",
        "do you see a red triangle?": "no", "size of the square?": "small"}),
)


def test_it_answers_about_pictures_drawn_by_hand(toy):
    asked = [(picture, question, answer) for picture, answers in BY_HAND for question, answer in answers.items()]
    wrong = []
    for picture, question, answer in asked:
        said = "".join(minivl2.stream(*toy, [{"role": "user", "content": f"<image>\n{question}"}], [picture], temperature=0))
        if said != answer:
            wrong.append(f"{question} {said} (not: {answer})")
    assert len(wrong) <= 0.15 * len(asked), wrong


def test_it_points_at_a_thing_drawn_by_hand(toy):
    picture = BY_HAND[0][0]
    messages = [{"role": "user", "content": "<image>\nlocate <|ref|>the blue square<|/ref|> in the given image."}]
    box, = minivl2.grounding.parse("".join(minivl2.stream(*toy, messages, [picture], temperature=0)))
    want = minivl2.grounding.Box("the blue square", *(1000 * edge / 56 for edge in (32, 8, 48, 24)))
    assert minivl2.grounding.iou(box, want) > 0.5
