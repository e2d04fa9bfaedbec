"""Checkpoints: the published names, strict loading, whole saving."""

import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

from minivl2 import weights
from minivl2.config import Config, ConfigError
from minivl2.model import DeepSeekVL2, build
from minivl2.names import UNUSED, published_names
from minivl2.weights import CheckpointError, load, save, verify

PUBLISHED = json.loads((Path(__file__).parent / "manifests.json").read_text(encoding="utf-8"))
each_published = pytest.mark.parametrize("name", PUBLISHED)


def spelled_out(tensors):
    """manifests.json writes "layers.0-2.x" for layers 0, 1 and 2, and "layers.0,2.x" for layers 0 and 2."""
    def choices(part):
        if part[:1].isdigit() and "-" in part:
            first, last = part.split("-")
            return [str(i) for i in range(int(first), int(last) + 1)]
        return part.split(",")
    return {".".join(name): tuple(shape) for pattern, shape in tensors.items()
            for name in itertools.product(*map(choices, pattern.split(".")))}


# ------------------------------------------------------------------------------------------ the published models


@each_published
def test_every_tensor_of_the_published_checkpoint_has_its_place_and_no_other_is_asked_for(name):
    published = PUBLISHED[name]
    with torch.device("meta"):
        ours = published_names(build(published["config"]))
    assert ours == spelled_out(published["tensors"])
    assert len(ours) == {"tiny": 2582, "small": 5639, "base": 6973}[name]
    assert sum(math.prod(shape) for shape in ours.values()) == published["parameters"]


@each_published
def test_a_named_size_is_the_published_configuration(name):
    """Field by field, defaults filled in."""
    named, published = Config.named(name), Config.from_dict(PUBLISHED[name]["config"])
    assert (named.vision, named.projector) == (published.vision, published.projector)
    assert named.candidate_resolutions == published.candidate_resolutions
    assert named.language == published.language


# ------------------------------------------------------------------------------------------ a small checkpoint to damage


@pytest.fixture(scope="module")
def sound(goldens, tmp_path_factory):
    """A checkpoint of a small model with every kind of tensor: query latent, correction bias, pooling head."""
    folder = tmp_path_factory.mktemp("checkpoints") / "sound"
    cfg = small.config(**small.SIGMOID, **small.QUERY_LATENT)
    model = small.randomised(DeepSeekVL2(cfg), dtype=torch.float32)
    model.unused = {name: small.numbers(*shape, dtype=torch.float32) for name, shape in
                    weights.unused_names(cfg.vision).items()}
    save(model, small.processor(goldens, cfg), folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def change(folder, **changes):
    """Rewrites the tensors: name=None takes one away, name=tensor puts one in. (Dots are written as double underscores.)"""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_language(folder, **changes):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["language_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_a_sound_checkpoint_loads_and_verifies(folder):
    model, processor = load(folder)
    assert verify(folder) == []
    assert not model.training
    assert processor.config.tile == small.TILE
    assert published_names(model) == {n: tuple(t.shape) for n, t in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("changes, message", [
    ({"language__lm_head__weight": None}, r"language\.lm_head\.weight: missing$"),
    ({"some__thing": torch.zeros(1)}, r"some\.thing: not a tensor of this model"),
    ({"view_seperator": None, "view_separator": torch.zeros(16)},
     r"view_seperator: missing \(is it the one called view_separator\?\)"),
    ({"image_newline": torch.zeros(17)}, r"image_newline: shape \[17\], but the configuration asks for \[16\]"),
    ({"vision__attn_pool__latent": torch.zeros(1, 1, 9)}, r"vision\.attn_pool\.latent: shape \[1, 1, 9\]"),
    ({"language__model__layers__1__mlp__experts__2__up_proj__weight": None},
     r"layers\.1\.mlp\.experts\.2\.up_proj\.weight: missing"),      # this expert would stay random, and nobody would know
    ({"vision__pos_embed": torch.zeros(9, 8)}, r"vision\.pos_embed: shape \[9, 8\]"),
], ids=["missing", "extra", "misspelled", "misshapen", "misshapen and unused", "one expert missing", "a dimension less"])
def test_a_tensor_that_does_not_fit_is_named(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=f"(?m){message}"):
        load(folder)
    assert any(re.search(message, line) for line in verify(folder))


def test_many_problems_are_counted_and_the_first_ten_shown(folder):
    change(folder, **{f"extra{i:02}": torch.zeros(1) for i in range(25)})
    with pytest.raises(CheckpointError, match=r"(?s)extra00.*extra09.*and 15 more") as error:
        load(folder)
    assert "extra10" not in str(error.value)
    assert len(verify(folder)) == 25


def test_only_the_unused_pooling_head_may_be_missing(folder):
    names = load_file(folder / "model.safetensors")
    change(folder, **{name.replace(".", "__"): None for name in names if "attn_pool" in name})
    model, _ = load(folder)
    assert model.unused == {} and verify(folder) == []


def test_weights_are_floating_point_numbers(folder):
    change(folder, image_newline=torch.zeros(16, dtype=torch.int32))
    with pytest.raises(CheckpointError, match=r"image_newline holds torch\.int32"):
        load(folder)


def test_verify_reads_every_number(folder):
    tensor = torch.zeros(16)
    tensor[3], tensor[5] = torch.nan, torch.inf
    change(folder, image_newline=tensor)
    assert verify(folder) == ["image_newline: 2 of 16 numbers are infinite or not a number"]


# ------------------------------------------------------------------------------------------ damaged files


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [cut_short, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 99)],
                         ids=["cut short", "empty", "no safetensors"])
def test_a_damaged_weights_file_is_named(folder, damage):
    damage(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short .* Fetch it again"):
        load(folder)


@pytest.mark.parametrize("file, error, message", [
    ("config.json", ConfigError, "config.json is not JSON"),
    ("processor_config.json", CheckpointError, "processor_config.json' cannot|processor_config.json cannot be read"),
    ("tokenizer.json", CheckpointError, "tokenizer.json cannot be read"),
    (weights.INDEX, CheckpointError, "index.json is not JSON"),
])
@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"], ids=["broken", "empty", "binary"])
def test_a_damaged_small_file_is_named(folder, file, error, message, content):
    (folder / file).write_bytes(content)
    with pytest.raises(error, match=message):
        load(folder)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer.json"])
def test_a_missing_small_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"is not a DeepSeek-VL2 checkpoint: it has no {file}"):
        load(folder)


def test_a_folder_without_weights_or_no_folder_at_all_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors file"):
        load(folder)
    for path in (folder / "config.json", folder / "nowhere"):
        with pytest.raises(CheckpointError, match="is not a folder"):
            load(path)


@pytest.fixture
def sharded(folder, monkeypatch):
    """The same checkpoint in several files."""
    monkeypatch.setattr(weights, "SHARD_BYTES", 10_000)
    save(*load(folder), folder)
    return folder


def test_a_large_checkpoint_is_saved_in_parts_named_as_published(sharded, sound):
    shards = sorted(sharded.glob("*.safetensors"))
    assert [s.name for s in shards] == [f"model-{i:05}-of-{len(shards):06}.safetensors" for i in range(1, len(shards) + 1)]
    parts = [load_file(shard) for shard in shards]
    for part in parts:
        assert len(part) == 1 or sum(t.nbytes for t in part.values()) <= 10_000
    index = json.loads((sharded / weights.INDEX).read_text(encoding="utf-8"))
    assert index["weight_map"] == {name: s.name for s, part in zip(shards, parts, strict=True) for name in part}
    assert index["metadata"]["total_size"] == sum(t.nbytes for part in parts for t in part.values())
    whole = load_file(sound / "model.safetensors")
    assert all(torch.equal(t, whole.pop(name)) for part in parts for name, t in part.items()) and not whole
    assert verify(sharded) == []


def test_a_missing_part_is_named(sharded):
    next(sharded.glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-\d+\.safetensors: the download is not complete"):
        load(sharded)


def test_a_tensor_in_two_files_is_refused(folder):
    save_file({"image_newline": torch.zeros(16)}, folder / "more.safetensors")
    with pytest.raises(CheckpointError, match="image_newline is in two files"):
        load(folder)


@pytest.mark.parametrize("content, message", [
    ({"weight_map": {"a": "../elsewhere.safetensors"}}, r"names files outside the folder: \.\./elsewhere"),
    ({"weight_map": {"a": "/etc/passwd"}}, "names files outside the folder: /etc/passwd"),
    ({"metadata": {}}, "has no weight_map"), ([1], "has no weight_map"), ({"weight_map": ["a"]}, "has no weight_map"),
])
def test_an_index_that_makes_no_sense_is_refused(folder, content, message):
    (folder / weights.INDEX).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load(folder)


# ------------------------------------------------------------------------------------------ parts that do not fit together


def test_a_tokenizer_with_more_tokens_than_the_model_knows_is_refused(folder):
    change_language(folder, vocab_size=100)
    with pytest.raises(CheckpointError, match=r"go up to 411, .*the model knows 100 tokens"):
        load(folder)


def test_a_processor_that_cuts_other_tiles_than_the_model_sees_is_refused(folder):
    rewrite(folder / "processor_config.json", candidate_resolutions=[[56, 56]])
    with pytest.raises(CheckpointError, match=r"tiles of 56 pixels.* 2 tokens a side, but the model sees 42 .* makes 2"):
        load(folder)
    rewrite(folder / "processor_config.json", candidate_resolutions=[[42, 42]], downsample_ratio=3)
    with pytest.raises(CheckpointError, match=r"42 pixels.* 1 tokens a side, but the model sees 42 pixels and makes 2"):
        load(folder)


def test_another_models_tokenizer_is_refused(folder):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<｜end▁of▁sentence｜>", "<|end_of_sentence|>"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the tokenizer has no <｜end▁of▁sentence｜>"):
        load(folder)


def test_a_configuration_that_cannot_be_built_is_refused(folder):
    change_language(folder, hidden_act="gelu")
    with pytest.raises(ConfigError, match="hidden_act is 'gelu'"):
        load(folder)


# ------------------------------------------------------------------------------------------ memory and dtypes


def mapped(tensor, path):
    """Does the tensor lie in the memory-mapped file itself? Read from the kernel's own table."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            first, last = (int(address, 16) for address in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return True
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_in_the_files_own_dtype_nothing_is_read_or_copied(folder):
    model, _ = load(folder, torch.float32)
    assert all(mapped(p, folder / "model.safetensors") for p in model.parameters())
    other, _ = load(folder, torch.bfloat16)
    assert not any(mapped(p, folder / "model.safetensors") for p in other.parameters())


def test_a_model_can_be_loaded_in_bfloat16_but_for_the_bias_of_its_gates(folder):
    """The bias moves by 0.001, which bfloat16 loses beside a bias of 0.5."""
    exact, rough = load(folder)[0].state_dict(), load(folder, torch.bfloat16)[0].state_dict()
    for name, tensor in rough.items():
        if name.endswith("gate.bias"):
            assert torch.equal(tensor, exact[name]) and tensor.dtype == torch.float32
        else:
            assert torch.equal(tensor, exact[name].bfloat16())


@torch.no_grad()
def test_a_checkpoint_in_bfloat16_runs_and_stays_bfloat16(folder):
    model, processor = load(folder, torch.bfloat16)
    save(model, processor, folder)
    tensors = load_file(folder / "model.safetensors")
    assert {t.dtype for n, t in tensors.items() if "attn_pool" not in n} == {torch.bfloat16, torch.float32}
    assert tensors["language.model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"
    again, _ = load(folder, torch.bfloat16)
    batch = processor(small.ask("<image>"), [small.picture(50, 50)])
    assert again(batch).isfinite().all()


@torch.no_grad()
def test_changing_a_loaded_model_does_not_change_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    model, _ = load(folder)
    for p in model.parameters():
        p.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


# ------------------------------------------------------------------------------------------ saving


@torch.no_grad()
def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(folder):
    model, processor = load(folder)
    model.image_newline.add_(1)
    wanted = {name: t.clone() for name, t in model.state_dict().items()}
    save(model, processor, folder)
    for state in (load(folder)[0].state_dict(), model.state_dict()):       # the file is new, the model unharmed
        assert all(torch.equal(t, wanted[name]) for name, t in state.items())


@torch.no_grad()
def test_the_unused_pooling_head_is_carried_on_or_filled_with_zeros(folder, tmp_path):
    before = {n: t.clone() for n, t in load_file(folder / "model.safetensors").items() if "attn_pool" in n}
    model, processor = load(folder)
    save(model, processor, tmp_path / "kept")
    after = load_file(tmp_path / "kept" / "model.safetensors")
    assert len(before) == 13 and all(torch.equal(t, after[n]) for n, t in before.items())
    model.unused = {}
    save(model, processor, tmp_path / "zeros")
    assert not any(load_file(tmp_path / "zeros" / "model.safetensors")[n].any() for n in before)
    assert verify(tmp_path / "zeros") == []


def test_files_of_the_checkpoint_before_do_not_stay_to_confuse(sharded, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 10**9)
    save(*load(sharded), sharded)
    assert [p.name for p in sharded.glob("model*")] == ["model.safetensors"]
    assert verify(sharded) == []


def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_litter(folder, monkeypatch):
    model, processor = load(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "_write_json", full_disk)     # after the weights, before the rest
    with pytest.raises(OSError, match="No space left"):
        save(model, processor, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_everything_a_reader_needs_is_saved(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert Config.from_dict(published) == load(folder)[0].config
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (tokenizer["bos_token"], tokenizer["eos_token"]) == ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")


def test_a_pooling_head_that_the_configuration_does_not_mention_is_accepted(folder):
    """It is never run; a checkpoint should not fail for it."""
    published = json.loads((folder / "config.json").read_text())
    published["vision_config"]["global_pool"] = ""
    (folder / "config.json").write_text(json.dumps(published))
    assert any(name.startswith(UNUSED) for name in load_file(folder / "model.safetensors"))
    assert verify(folder) == []
    load(folder)
