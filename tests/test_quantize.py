"""Weights of 8 and 4 bits: how far they are from what they were, and that packed and unpacked they are the same."""

import json
import subprocess
import sys

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_weights import linux, mapped
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from minivl2 import quantize
from minivl2.config import Config, ProjectorConfig, VisionConfig, paper_candidates
from minivl2.experts import MLP
from minivl2.generation import generate
from minivl2.model import DeepSeekVL2
from minivl2.packed import GROUP, Packed4, Packed8, Packed16, in_order, layout, out_of_order, round4, round8
from minivl2.quantize import JoinedMLP
from minivl2.weights import CheckpointError, load, save, verify

SEEDS = st.integers(0, 999)
each_bits = pytest.mark.parametrize("bits", [8, 4])
ORDERS = [(block, halves) for block in (64, 32, 16) for halves in (True, False)]


def matrix(rows, columns, seed=0, dtype=torch.float32):
    return small.numbers(rows, columns, seed=seed, dtype=dtype) * (1 + small.numbers(rows, 1, seed=seed + 1).abs()).to(dtype)


# ------------------------------------------------------------------------------------------ rounding


@given(st.integers(1, 5), st.integers(1, 70), SEEDS)
def test_8_bits_are_at_most_half_a_step_away(rows, columns, seed):
    w = matrix(rows, columns, seed)
    q, scale = round8(w)
    assert q.dtype == torch.int8 and scale.shape == (rows,)
    step = scale.float()[:, None]
    assert_close(step, w.abs().amax(1, keepdim=True) / 127, atol=0, rtol=0.004)     # no coarser than it has to be
    # the largest number may lie half a step beyond 127 steps, as the step itself was rounded
    assert ((q.float() * step - w).abs() <= 0.51 * step).all()


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.0, 3.0]), SEEDS)
def test_4_bits_are_at_most_half_a_step_away_and_each_32_have_their_own(rows, groups, shift, seed):
    w = (matrix(rows, groups * GROUP, seed).unflatten(1, (groups, GROUP)) * 10.0 ** torch.arange(groups)[:, None] + shift)
    q, scales = round4(w.flatten(1))
    step, zero = scales.float().transpose(0, 1)[..., None].unbind(2)
    assert int(q.max()) <= 15
    assert_close(step, (w.amax(-1, keepdim=True) - w.amin(-1, keepdim=True)) / 15, atol=0, rtol=0.004)
    near = (q.view_as(w).float() - 8) * step + zero
    assert ((near - w).abs() <= 0.56 * step + zero.abs() / 256).all()       # and what rounding step and zero costs


def test_numbers_that_are_all_the_same_stay_so():
    same = torch.full((64, 32), 0.375)
    assert torch.equal(Packed_of(4, same).unpack(torch.float32), same)
    assert not Packed_of(8, torch.zeros(16, 32)).unpack(torch.float32).any()


# ------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_can_be_undone(order):
    q = torch.randint(0, 16, (128, 64), dtype=torch.uint8)
    assert torch.equal(out_of_order(in_order(q, order), order).T, q.to(torch.int8))


def test_the_order_is_the_one_that_torch_packs_in():
    assert layout() in ORDERS
    q = torch.randint(0, 16, (192, 96), dtype=torch.int32)
    assert torch.equal(in_order(q.to(torch.uint8), layout()), torch._convert_weight_to_int4pack_for_cpu(q, 1))


def Packed_of(bits, weight, bias=None, gelu=False, dtype=torch.float32):
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    packed = {16: Packed16, 8: Packed8, 4: Packed4}[bits]([plain], gelu)
    packed.bias = None if bias is None else nn.Parameter(bias)
    packed.take(0, weight)
    return packed.to(dtype) if bits == 16 else packed


@torch.no_grad()
@each_bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(tokens=st.integers(1, 9), seed=SEEDS)
def test_packed_and_unpacked_are_the_same_product(bits, dtype, tokens, seed):
    packed = Packed_of(bits, matrix(128, 96, seed))
    x = small.numbers(tokens, 96, seed=seed, dtype=dtype)
    # torch multiplies in float32 and rounds once; unpacked, bfloat16 weights are rounded, too
    error = 1e-5 if dtype == torch.float32 else 2**-7
    want = x.double() @ packed.unpack(dtype).double().T
    assert_close(packed.multiply(x).double(), want, rtol=error, atol=error * float(want.abs().max()))


@torch.no_grad()
def test_what_the_kernel_of_4_bits_reads_is_to_the_bit_what_is_unpacked():
    packed = Packed_of(4, matrix(128, 64))
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(packed.multiply(torch.eye(64, dtype=dtype)).T, packed.unpack(dtype))


@torch.no_grad()
@each_bits
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_vectors_and_many_get_the_same_answers(bits, gelu, dtype, monkeypatch):
    packed = Packed_of(bits, matrix(64, 32) / 6, small.numbers(64, dtype=dtype), gelu)
    x, ways = small.numbers(2, 40, 32, dtype=dtype), []
    for name in ("multiply", "unpack"):
        way = getattr(packed, name)
        monkeypatch.setattr(packed, name, lambda *a, way=way, name=name: ways.append(name) or way(*a))
    many = packed(x)
    few = torch.stack([torch.stack([packed(vector[None])[0] for vector in row]) for row in x])
    assert ways == ["unpack"] + ["multiply"] * 80
    plain = F.linear(x.float(), packed.unpack(torch.float32), packed.bias.float())
    plain = F.gelu(plain, approximate="tanh") if gelu else plain
    error = 1e-5 if dtype == torch.float32 else 0.03
    assert_close(many.float(), plain, atol=error, rtol=error)
    assert_close(few.float(), plain, atol=error, rtol=error)


needs_onednn = pytest.mark.skipif(not quantize.onednn(), reason="oneDNN cannot multiply bfloat16 here")


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("tokens", [(1,), (2, 3), (100,)])
def test_packed_bfloat16_is_bfloat16(tokens, gelu):
    weight, bias = small.numbers(48, 40, dtype=torch.bfloat16) / 6, small.numbers(48, seed=1, dtype=torch.bfloat16)
    packed, x = Packed_of(16, weight, bias, gelu), small.numbers(*tokens, 40, seed=2, dtype=torch.bfloat16)
    want = F.linear(x.float(), weight.float(), bias.float())
    want = F.gelu(want, approximate="tanh") if gelu else want
    assert_close(packed(x).float(), want, atol=0.01, rtol=0.01)
    assert torch.equal(packed.unpack(torch.bfloat16), weight)


@torch.no_grad()
@each_bits
@given(SEEDS)
def test_an_expert_of_joined_matrices_is_the_expert(bits, seed):
    mlp = small.randomised(MLP(64, 32), seed, dtype=torch.float32)
    joined = JoinedMLP(mlp, {8: Packed8, 4: Packed4}[bits])
    for part, matrix in enumerate((mlp.up_proj, mlp.gate_proj)):        # in whatever order they come
        joined.gate_up.take(1 - part, matrix.weight)
    mlp.gate_proj.weight, mlp.up_proj.weight = map(nn.Parameter, joined.gate_up.unpack(torch.float32).chunk(2))
    x = small.numbers(3, 64, dtype=torch.float32)
    assert_close(joined(x), mlp(x), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------ a whole model


def config(**changes):
    """Wide enough that every kind of matrix is packed."""
    lang = small.language(**{
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "kv_lora_rank": 48, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "moe_intermediate_size": 32} | changes)
    return Config(VisionConfig(image_size=small.TILE, patch_size=14, width=32, layers=2, heads=2, mlp_ratio=2.0),
                  ProjectorConfig(input_dim=32, n_embed=lang.hidden_size), lang, paper_candidates(small.TILE))


@pytest.fixture(scope="module", params=["latent", "multi-head"])
def folder(request, goldens, tmp_path_factory):
    cfg = config(**(small.MULTI_HEAD if request.param == "multi-head" else {}))
    folder = tmp_path_factory.mktemp("quantised") / request.param
    save(small.randomised(DeepSeekVL2(cfg), dtype=torch.bfloat16), small.processor(goldens, cfg), folder)
    return folder


def question(processor):
    return processor(small.ask("<image> what is it?"), [small.picture(80, 40)])


def dequantised(model, folder):
    """The plain model, with the packed one's numbers."""
    plain, _ = load(folder)
    takers = quantize.prepare(DeepSeekVL2(model.config), model.bits)
    for name, (_, part) in takers.items():
        path = name.removesuffix(".weight")
        home = path if part == 0 and "gate_proj" not in path else path.rpartition(".")[0] + ".gate_up"
        whole = model.get_submodule(home).unpack(torch.float32)
        plain.get_submodule(path).weight = nn.Parameter(whole.chunk(2)[part] if home.endswith("gate_up") else whole)
    return plain


@torch.no_grad()
@each_bits
def test_a_quantised_model_is_the_plain_one_with_rounded_weights(folder, bits):
    model, processor = load(folder, quantize=f"int{bits}")
    plain, batch = dequantised(model, folder), question(processor)
    assert_close(model(batch), plain(batch), atol=1e-4, rtol=1e-4)
    assert generate(model, batch, 8).tolist() == generate(plain, batch, 8).tolist()


@pytest.mark.parametrize("bits, share", [(8, 0.6), (4, 0.45)])
def test_every_large_matrix_is_packed_and_only_packed(folder, bits, share):
    model, _ = load(folder, quantize=f"int{bits}")
    left = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert all(name.endswith("kv_up") for name in left)
    packed = [m for m in model.modules() if isinstance(m, quantize.Packed)]
    assert all(m.waiting == [] for m in packed)
    assert {type(m) for m in packed} == ({Packed8} if bits == 8 else {Packed4, Packed8})
    whole = sum(2 * m.rows * m.columns for m in packed)
    assert sum(t.nbytes for m in packed for name, t in m.named_buffers()) < share * whole


@torch.no_grad()
@each_bits
def test_a_quantised_model_is_saved_and_loaded_again_to_the_last_bit(folder, bits, tmp_path):
    model, processor = load(folder, torch.bfloat16, quantize=f"int{bits}")
    save(model, processor, tmp_path / "small")
    again, _ = load(tmp_path / "small", torch.bfloat16)
    batch = question(processor)
    assert torch.equal(again(batch), model(batch)) and again.bits == bits
    assert verify(tmp_path / "small") == []
    size = {path: (path / "model.safetensors").stat().st_size for path in (folder, tmp_path / "small")}
    assert size[tmp_path / "small"] < 0.8 * size[folder]    # the embedding, not packed, is a large part of a small model
    with pytest.raises(ValueError, match="holds weights of . bits already"):
        load(tmp_path / "small", quantize={8: "int4", 4: "int8"}[bits])


@linux
@each_bits
def test_a_quantised_checkpoint_is_mapped_where_the_kernel_can_read_it_in_place(folder, bits, tmp_path):
    save(*load(folder, torch.bfloat16, quantize=f"int{bits}"), tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    tensors, there = load_file(file), []
    for filler in ("", 8 * "x"):    # moves all tensors by 8 bytes, so that each is at a multiple of 16 once
        save_file(tensors, file, metadata={"filler": filler})
        model, _ = load(tmp_path / "small", torch.bfloat16)
        there += [name for name, t in model.named_buffers() if mapped(t, file)]
        assert all(t.data_ptr() % 16 == 0 for t in model.buffers())
    assert sorted(there) == sorted(name for name, _ in model.named_buffers())


@torch.no_grad()
@each_bits
def test_vectors_at_odd_addresses_are_multiplied_too(bits):
    packed, room = Packed_of(bits, matrix(64, 32)), small.numbers(8 * 32 + 1, dtype=torch.float32)
    x = room[1:].view(8, 32)
    assert x.data_ptr() % 16 and torch.equal(packed.multiply(x), packed.multiply(x.clone()))


@torch.no_grad()
def test_a_checkpoint_from_another_processor_is_put_into_this_ones_order(folder, tmp_path):
    model, processor = load(folder, quantize="int4")
    save(model, processor, tmp_path / "theirs")
    other = next(order for order in ORDERS if order != layout())
    file, about = tmp_path / "theirs" / "model.safetensors", tmp_path / "theirs" / "config.json"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("weight_int4"):
            tensors[name] = in_order(out_of_order(tensors[name], layout()).T.to(torch.uint8), other)
    save_file(tensors, file)
    said = json.loads(about.read_text(encoding="utf-8"))
    said["quantization"]["layout"] = list(other)
    about.write_text(json.dumps(said), encoding="utf-8")
    batch = question(processor)
    assert_close(load(tmp_path / "theirs")[0](batch), model(batch), atol=0, rtol=0)


def test_a_missing_or_misshapen_scale_is_named(folder, tmp_path):
    save(*load(folder, quantize="int8"), tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    tensors = load_file(file)
    del tensors["language.lm_head.scale"]
    tensors["projector.layers.0.scale"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"(?s)lm_head\.scale: missing.*projector\.layers\.0\.scale: shape \[3\]"):
        load(tmp_path / "small")


def test_an_unknown_way_to_quantise_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="quantize cannot be 'int3'; it is int8 or int4"):
        load(folder, quantize="int3")
    save(*load(folder, quantize="int8"), tmp_path / "small")
    path = tmp_path / "small" / "config.json"
    said = json.loads(path.read_text(encoding="utf-8")) | {"quantization": {"bits": 3}}
    path.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(CheckpointError, match="in a way that minivl2 does not know"):
        load(tmp_path / "small")


def test_what_this_machine_cannot_do_is_refused_in_words(folder, monkeypatch):
    with pytest.raises(ValueError, match="only weights in bfloat16 are packed"):
        load(folder, torch.float32, pack=True)
    with pytest.raises(ValueError, match="kernels of a CPU; this is cuda"):
        load(folder, torch.float32, "cuda", quantize="int8")
    monkeypatch.setattr(quantize, "layout", lambda: None)
    with pytest.raises(ValueError, match="cannot multiply weights of 4 bits on this processor"):
        load(folder, quantize="int4")


def test_packing_where_the_processor_cannot_is_refused_in_words(folder, monkeypatch):
    monkeypatch.setattr(quantize, "onednn", lambda: False)
    with pytest.raises(ValueError, match="oneDNN can: False"):
        load(folder, torch.bfloat16, pack=True)


@needs_onednn
@torch.no_grad()
def test_a_model_packed_without_rounding_answers_as_before_and_is_not_saved(folder, tmp_path):
    packed, processor = load(folder, torch.bfloat16, pack=True)
    plain, _ = load(folder, torch.bfloat16)
    batch = question(processor)
    exact, _ = load(folder)         # in float32: beside it, packed is not further off than plain, but for chance
    looked = [model.see(batch.tiles, batch.grids)[0].float() for model in (packed, plain, exact)]
    told = [model(batch).float() for model in (packed, plain, exact)]
    for ours, theirs, right in (looked, told):
        assert 0 < (ours - right).abs().mean() < 1.5 * (theirs - right).abs().mean()
    with pytest.raises(ValueError, match="load the model without pack to save it"):
        save(packed, processor, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@torch.no_grad()
def test_how_alike_two_models_are_is_counted_where_something_is_to_be_predicted(folder):
    plain, processor = load(folder)
    batches = [processor(small.answered("<image> what?", answer), [small.picture(42, 42)], training=True)
               for answer in ("a red circle", "two")]
    same = quantize.agreement(plain, plain, batches)
    assert same["kl"] == pytest.approx(0, abs=1e-6) and same["same_likeliest"] == 1
    packed, _ = load(folder, quantize="int4")
    divergences, equal = [], []
    for batch in batches:
        p, q = plain(batch)[0].double().softmax(-1), packed(batch)[0].double().softmax(-1)
        for t in range(len(p) - 1):
            if batch.labels[0, t + 1] >= 0:
                divergences.append(sum(a * (a / b).log() for a, b in zip(p[t], q[t], strict=True)))
                equal.append(bool(p[t].argmax() == q[t].argmax()))
    got = quantize.agreement(plain, packed, batches)
    assert got["kl"] == pytest.approx(float(sum(divergences) / len(divergences)), rel=1e-3) and got["kl"] > 0
    assert got["same_likeliest"] == pytest.approx(sum(equal) / len(equal))


# ------------------------------------------------------------------------------------------ memory

WEIGH = """if True:
    import sys, torch
    torch.set_num_threads(1)
    from minivl2.weights import load
    def peak():
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    load(sys.argv[1], torch.bfloat16, quantize="int4")      # so that all code is there
    before = peak()
    model, _ = load(sys.argv[2], torch.bfloat16, **eval(sys.argv[3]))
    print("peak", peak() - before)
"""


@pytest.fixture(scope="module")
def large(goldens, tmp_path_factory):
    """A checkpoint, and how many bytes its weights have."""
    cfg = config(hidden_size=256, moe_intermediate_size=256, n_routed_experts=64, num_hidden_layers=5)
    model, folder = DeepSeekVL2(cfg).bfloat16(), tmp_path_factory.mktemp("large") / "model"
    save(model, small.processor(goldens, cfg), folder)
    return folder, sum(p.nbytes for p in model.parameters())


@linux
@pytest.mark.parametrize("how, share", [({"quantize": "int4"}, 0.9), ({"quantize": "int8"}, 1.25), ({"pack": True}, 1.6)])
def test_the_whole_model_is_never_in_memory_but_packed(goldens, large, how, share):
    """100 MB of experts in bfloat16, with code and scraps, as the kernel counts. Whole *and* packed: 1.3, 1.5 and 2."""
    folder, size = large
    if "pack" in how and not quantize.onednn():
        pytest.skip("oneDNN cannot multiply bfloat16 here")
    done = subprocess.run([sys.executable, "-c", WEIGH, goldens / "mla", folder, repr(how)], capture_output=True, text=True,
                          check=True)
    print(how, size, done.stdout)
    assert size > 100e6 and int(done.stdout.split()[-1]) < share * size
