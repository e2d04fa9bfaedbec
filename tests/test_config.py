"""Configuration: published names, published defaults, and words for what cannot be built."""

import json

import pytest
import small

from minivl2.config import (
    SIZES,
    Config,
    ConfigError,
    LanguageConfig,
    ProjectorConfig,
    VisionConfig,
    paper_candidates,
)

# Of a published config.json, whatever equals these is left out: they are part of the format.
DEFAULTS = {
    "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 32, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "use_mla": True,
    "n_group": None, "topk_group": None, "moe_layer_freq": 1, "first_k_dense_replace": 0, "norm_topk_prob": False,
    "scoring_func": "softmax", "topk_method": "greedy", "routed_scaling_factor": 1.0, "aux_loss_alpha": 0.001,
    "seq_aux": True, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": None,
    "attention_bias": False, "tie_word_embeddings": False,
}


def published(**language):
    """A published file as short as it can be: Small's."""
    return {
        "candidate_resolutions": [[384, 384], [768, 384]],
        "vision_config": {"layers": 27, "width": 1152, "patch_size": 14, "model_name": "siglip_so400m_patch14_384"},
        "projector_config": {"n_embed": 2048, "model_type": "mlp_projector"},
        "language_config": {"hidden_size": 2048, "q_lora_rank": None, "torch_dtype": "bfloat16"} | language,
    }


def test_defaults_are_those_of_the_published_code():
    assert {name: getattr(LanguageConfig(), name) for name in DEFAULTS} == DEFAULTS
    assert (VisionConfig().image_size, VisionConfig().heads, VisionConfig().global_pool) == (384, 16, "map")
    assert ProjectorConfig() == ProjectorConfig(1152, 2048, 2, 1, 2, "downsample_mlp_gelu")


def test_what_the_file_says_wins_over_the_default_and_unknown_words_are_passed_over():
    config = Config.from_dict(published(rope_theta=5000, invented=3))
    assert config.language.q_lora_rank is None          # null in the file: not the default of 1536
    assert config.language.rope_theta == 5000 and config.language.kv_lora_rank == 512
    assert config.candidate_resolutions == ((384, 384), (768, 384))


@pytest.mark.parametrize("name", SIZES)
def test_a_configuration_survives_being_written_and_read(name, tmp_path):
    config = Config.named(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert Config.from_file(tmp_path) == Config.from_file(tmp_path / "config.json") == config


@pytest.mark.parametrize("most, pairs", [(9, 23), (18, 58)])
def test_candidates_are_all_grids_of_at_most_so_many_tiles(most, pairs):
    grids = paper_candidates(10, most)
    assert len(grids) == len(set(grids)) == pairs
    assert set(grids) == {(10 * w, 10 * h) for w in range(1, most + 1) for h in range(1, most + 1) if w * h <= most}


def test_candidates_are_in_the_published_order(goldens):
    config = json.loads((goldens / "mla" / "config.json").read_text(encoding="utf-8"))
    assert [list(size) for size in paper_candidates()] == config["candidate_resolutions"]


def test_which_layers_have_experts():
    def layers(**changes):
        return [i for i in range(6) if small.language(**changes).is_moe(i)]
    assert layers(first_k_dense_replace=1) == [1, 2, 3, 4, 5]
    assert layers(first_k_dense_replace=3) == [3, 4, 5]
    assert layers(first_k_dense_replace=1, moe_layer_freq=2) == [2, 4]
    assert layers(n_routed_experts=None) == layers(n_routed_experts=0) == []


def test_sizes_that_follow_from_others():
    assert small.config().tokens_per_side == 2                          # 3 patches, padded to 4, halved
    assert Config.named("tiny").tokens_per_side == 14
    assert Config.named("tiny").language.head_dim == 128                # not the 0 of its file
    assert Config.named("base").vision.mlp_width == 4304


def refused(message, **parts):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(published() | parts)


@pytest.mark.parametrize("changes, message", [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; minivl2 builds 'silu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    ({"rope_scaling": {"factor": 2}}, "rope_scaling is"),
    ({"hidden_size": 1000}, "the projector gives vectors of 2048, but the decoder reads 1000"),
    ({"kv_lora_rank": None}, "latent attention needs language_config.kv_lora_rank, got None"),
    ({"qk_nope_head_dim": 0}, "latent attention needs language_config.qk_nope_head_dim, got 0"),
    ({"v_head_dim": 0}, "latent attention needs language_config.v_head_dim"),
    ({"qk_rope_head_dim": 7}, "rotary width 7 is odd"),
    ({"use_mla": False, "num_attention_heads": 30}, "hidden size 2048 cannot be split into 30 heads"),
    ({"use_mla": False, "num_attention_heads": 2048, "num_key_value_heads": 1}, "head width 1 is odd"),
    ({"use_mla": False, "num_key_value_heads": 7}, "32 query heads cannot share 7 key heads"),
    ({"n_routed_experts": 8}, "num_experts_per_tok is None, of 8 experts"),
    ({"n_routed_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok is 9, of 8 experts"),
    ({"n_routed_experts": 8, "num_experts_per_tok": 2, "scoring_func": "relu"}, "'relu' is not softmax or sigmoid"),
    ({"n_routed_experts": 8, "num_experts_per_tok": 2, "topk_method": "random"}, "'random' is not greedy"),
    ({"n_routed_experts": 8, "num_experts_per_tok": 2, "topk_method": "noaux_tc"}, "cannot be limited to None of None"),
    ({"n_routed_experts": 8, "num_experts_per_tok": 2, "topk_method": "noaux_tc", "n_group": 3, "topk_group": 1},
     "8 experts cannot be limited to 1 of 3 equal groups"),
    ({"n_routed_experts": 8, "num_experts_per_tok": 5, "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
     "1 groups hold fewer than the 5 experts"),
    ({"n_routed_experts": 8, "num_experts_per_tok": 1, "topk_method": "noaux_tc", "n_group": 8, "topk_group": 1},
     "a group needs two"),
])
def test_a_decoder_that_cannot_be_built_is_refused_in_words(changes, message):
    refused(message, language_config=published(**changes)["language_config"])


@pytest.mark.parametrize("part, changes, message", [
    ("vision_config", {"width": 1000}, "vision width 1000 cannot be split into 16 heads"),
    ("vision_config", {"patch_size": 400}, "a patch of 400 pixels is larger than a tile of 384"),
    ("vision_config", {"width": 1600}, "the projector reads vectors of 1152, but the vision tower gives 1600"),
    ("projector_config", {"projector_type": "linear"}, "projector_type is 'linear'"),
])
def test_other_parts_that_do_not_fit_are_refused_in_words(part, changes, message):
    refused(message, **{part: published()[part] | changes})


@pytest.mark.parametrize("name, value, message", [
    ("tile_tag", "1D", "tile_tag is '1D'"), ("global_view_pos", "tail", "global_view_pos is 'tail'"),
    ("candidate_resolutions", [], "no image could be tiled"),
    ("candidate_resolutions", [[384, 400]], "384x400 is not made of whole tiles of 384"),
    ("candidate_resolutions", [[0, 384]], "0x384 is not made of whole tiles"),
])
def test_a_layout_that_no_deepseek_vl2_has_is_refused_in_words(name, value, message):
    refused(message, **{name: value})


@pytest.mark.parametrize("key", ["candidate_resolutions", "vision_config", "projector_config", "language_config"])
def test_the_configuration_of_something_else_is_refused(key):
    other = published()
    del other[key]
    with pytest.raises(ConfigError, match=f"not the configuration of a DeepSeek-VL2: '{key}' is missing"):
        Config.from_dict(other)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        Config.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        Config.from_file(tmp_path)
    with pytest.raises(ConfigError, match="no size is called 'large'; there are toy, tiny, small, base"):
        Config.named("large")
