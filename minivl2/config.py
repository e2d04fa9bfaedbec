"""Configuration: every number that shapes a DeepSeek-VL2, under the names the published files use.

Paper    DeepSeek-VL2, arXiv:2412.10302, table 1 and section 2.
Lesson   lessons/07_the_whole_model.ipynb       Tests   tests/test_config.py

A published `config.json` leaves out whatever equals a default, so the defaults below are part of the format.
They are frozen dataclasses: read once here, then passed around; no other module looks into a dictionary.

Letters used in shape comments everywhere in minivl2
    B batch      T new tokens      S all tokens so far (cached + new)     V vocabulary
    D width of the language model  H heads    d head width     L layers
    C latent     N content part of a query or key    R rotary part    v value part     (widths, in latent attention)
    E experts    K experts chosen per token          F width inside an expert
    M tiles      P patches of a tile (27 x 27)       W width of the vision tower       w, h tiles across and down
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Size = tuple[int, int]


class ConfigError(ValueError):
    """A configuration that no DeepSeek-VL2 has, or that minivl2 cannot build."""


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP vision tower. Defaults: SigLIP-SO400M at 384 pixels."""

    image_size: int = 384       # pixels along one side of a tile
    patch_size: int = 14
    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp_ratio: float = 3.7362   # 4304 = int(1152 * 3.7362)
    global_pool: str = "map"    # "map": the checkpoint carries a pooling head, which DeepSeek-VL2 never runs

    @property
    def grid(self) -> int:
        """Patches along one side of a tile. The last 6 of 384 pixels do not fill a patch and are dropped."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True)
class ProjectorConfig:
    """The pixel-shuffle projector ("VL adaptor")."""

    input_dim: int = 1152
    n_embed: int = 2048
    depth: int = 2
    mlp_ratio: int = 1
    downsample_ratio: int = 2
    projector_type: str = "downsample_mlp_gelu"


@dataclass(frozen=True)
class LanguageConfig:
    """The mixture-of-experts decoder. The defaults are those of the published code."""

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008          # width of the dense MLP of the first layer(s)
    num_hidden_layers: int = 30
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    bos_token_id: int = 0
    eos_token_id: int = 1

    # attention
    use_mla: bool = True                    # False: plain multi-head attention (Tiny)
    num_attention_heads: int = 32
    num_key_value_heads: int = 32           # multi-head attention only
    kv_lora_rank: int | None = 512          # C
    q_lora_rank: int | None = 1536          # None: queries are not compressed (all published models)
    qk_nope_head_dim: int | None = 128      # N
    qk_rope_head_dim: int | None = 64       # R
    v_head_dim: int | None = 128            # v
    rope_theta: float = 10000.0

    # experts
    n_routed_experts: int | None = None     # E
    num_experts_per_tok: int | None = None  # K
    n_shared_experts: int | None = None
    moe_intermediate_size: int = 1407       # F
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 0          # this many layers at the bottom keep a dense MLP
    topk_method: str = "greedy"             # how experts are chosen: greedy, group_limited_greedy, noaux_tc
    scoring_func: str = "softmax"           # how logits become scores: softmax, sigmoid
    n_group: int | None = None
    topk_group: int | None = None
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.001           # weight of the balance loss
    seq_aux: bool = True                    # the balance loss is taken sequence by sequence

    # the published code could switch these; no published model does, and minivl2 refuses other values
    hidden_act: str = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    rope_scaling: dict | None = None

    @property
    def head_dim(self) -> int:
        """Width of one head of multi-head attention. (Tiny's file also says v_head_dim 0: it is not used.)"""
        return self.hidden_size // self.num_attention_heads

    def is_moe(self, layer: int) -> bool:
        """Has this layer experts, or a dense MLP?"""
        has_experts = bool(self.n_routed_experts)
        return has_experts and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


def paper_candidates(tile: int = 384, most_tiles: int = 9) -> tuple[Size, ...]:
    """All (width, height) of at most `most_tiles` tiles, in the published order (it decides ties). Paper, section 2."""
    sides = range(1, most_tiles + 1)
    grids = [(w, h) for w in sides for h in sides if w * h <= most_tiles]
    grids.sort(key=lambda grid: (grid[0] * grid[1], min(grid), grid))
    return tuple((tile * w, tile * h) for w, h in grids)


@dataclass(frozen=True)
class Config:
    """A whole DeepSeek-VL2: vision tower, projector, decoder, and the resolutions an image may be tiled at."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    candidate_resolutions: tuple[Size, ...] = field(default_factory=paper_candidates)
    tile_tag: str = "2D"
    global_view_pos: str = "head"

    def __post_init__(self):
        check(self)

    @property
    def tokens_per_side(self) -> int:
        """Visual tokens along one side of a tile: 27 patches, padded to 28, squeezed 2 x 2, are 14."""
        return -(-self.vision.grid // self.projector.downsample_ratio)

    @classmethod
    def from_dict(cls, published: dict[str, Any]) -> Config:
        """From the contents of a published `config.json`. Raises ConfigError for what cannot be built."""
        try:
            resolutions = published["candidate_resolutions"]
            parts = {name: published[f"{name}_config"] for name in ("vision", "projector", "language")}
        except (KeyError, TypeError) as missing:
            raise ConfigError(f"not the configuration of a DeepSeek-VL2: {missing} is missing") from None
        return cls(
            vision=_pick(VisionConfig, parts["vision"]),
            projector=_pick(ProjectorConfig, parts["projector"]),
            language=_pick(LanguageConfig, parts["language"]),
            candidate_resolutions=tuple((int(width), int(height)) for width, height in resolutions),
            tile_tag=published.get("tile_tag", "2D"),
            global_view_pos=published.get("global_view_pos", "head"),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Config:
        """From a published `config.json`, or the folder that holds one."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist; a checkpoint folder holds a config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from None

    @classmethod
    def named(cls, name: str) -> Config:
        """One of `toy, tiny, small, base`."""
        if name not in SIZES:
            raise ConfigError(f"no size is called {name!r}; there are {', '.join(SIZES)}")
        return SIZES[name]

    def to_dict(self) -> dict[str, Any]:
        """The published form, with nothing left to defaults."""
        return {
            "model_type": "deepseek_vl_v2",
            "candidate_resolutions": [list(size) for size in self.candidate_resolutions],
            "tile_tag": self.tile_tag,
            "global_view_pos": self.global_view_pos,
            "vision_config": {
                "model_type": "vision", "model_name": "siglip_so400m_patch14_384", **dataclasses.asdict(self.vision)},
            "projector_config": {"model_type": "mlp_projector", **dataclasses.asdict(self.projector)},
            "language_config": {"model_type": "deepseek_v2", **dataclasses.asdict(self.language)},
        }


def _pick(kind: type, published: dict[str, Any]):
    """Keep the fields we know. A file may say more (model_type, torch_dtype, ...), and may leave out defaults."""
    known = {f.name for f in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in published.items() if name in known})


def check(cfg: Config) -> None:
    """Raise ConfigError, in words, for a configuration that cannot be built."""
    vision, projector, lang = cfg.vision, cfg.projector, cfg.language

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(message)

    for name, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("tie_word_embeddings", False),
                         ("rope_scaling", None)):
        got = getattr(lang, name)
        need(got == wanted, f"language_config.{name} is {got!r}; minivl2 builds {wanted!r}, as all published models have")
    need(projector.projector_type == "downsample_mlp_gelu",
         f"projector_type is {projector.projector_type!r}; DeepSeek-VL2's is 'downsample_mlp_gelu'")
    need(cfg.tile_tag == "2D", f"tile_tag is {cfg.tile_tag!r}; DeepSeek-VL2's is '2D'")
    need(cfg.global_view_pos == "head", f"global_view_pos is {cfg.global_view_pos!r}; DeepSeek-VL2's is 'head'")
    need(vision.width % vision.heads == 0, f"vision width {vision.width} cannot be split into {vision.heads} heads")
    need(vision.grid >= 1, f"a patch of {vision.patch_size} pixels is larger than a tile of {vision.image_size}")
    need(projector.input_dim == vision.width,
         f"the projector reads vectors of {projector.input_dim}, but the vision tower gives {vision.width}")
    need(projector.n_embed == lang.hidden_size,
         f"the projector gives vectors of {projector.n_embed}, but the decoder reads {lang.hidden_size}")
    need(len(cfg.candidate_resolutions) > 0, "candidate_resolutions is empty: no image could be tiled")
    for width, height in cfg.candidate_resolutions:
        need(width > 0 and height > 0 and width % vision.image_size == 0 and height % vision.image_size == 0,
             f"candidate resolution {width}x{height} is not made of whole tiles of {vision.image_size} pixels")

    heads = lang.num_attention_heads
    if lang.use_mla:
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            need(bool(getattr(lang, name)), f"latent attention needs language_config.{name}, got {getattr(lang, name)}")
        need(lang.qk_rope_head_dim % 2 == 0, f"rotary width {lang.qk_rope_head_dim} is odd: pairs are rotated")
    else:
        need(lang.hidden_size % heads == 0, f"hidden size {lang.hidden_size} cannot be split into {heads} heads")
        need(lang.head_dim % 2 == 0, f"head width {lang.head_dim} is odd: rotary embedding rotates pairs")
        need(heads % lang.num_key_value_heads == 0,
             f"{heads} query heads cannot share {lang.num_key_value_heads} key heads evenly")

    if not lang.n_routed_experts:
        return
    experts, chosen = lang.n_routed_experts, lang.num_experts_per_tok
    need(bool(chosen) and 0 < chosen <= experts, f"num_experts_per_tok is {chosen}, of {experts} experts")
    need(lang.scoring_func in ("softmax", "sigmoid"), f"scoring_func {lang.scoring_func!r} is not softmax or sigmoid")
    need(lang.topk_method in ("greedy", "group_limited_greedy", "noaux_tc"),
         f"topk_method {lang.topk_method!r} is not greedy, group_limited_greedy or noaux_tc")
    if lang.topk_method != "greedy":
        groups, kept = lang.n_group, lang.topk_group
        need(bool(groups) and bool(kept) and 0 < kept <= groups and experts % groups == 0,
             f"{experts} experts cannot be limited to {kept} of {groups} equal groups")
        need(kept * (experts // groups) >= chosen, f"{kept} groups hold fewer than the {chosen} experts to choose")
        need(lang.topk_method != "noaux_tc" or experts // groups >= 2,
             "noaux_tc scores a group by its best two experts, so a group needs two")


def _sizes() -> dict[str, Config]:
    siglip = VisionConfig()
    tiny = LanguageConfig(
        vocab_size=129280, hidden_size=1280, intermediate_size=6848, num_hidden_layers=12,
        use_mla=False, num_attention_heads=10, num_key_value_heads=10,
        kv_lora_rank=None, q_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0, v_head_dim=0,
        n_routed_experts=64, num_experts_per_tok=6, n_shared_experts=2, moe_intermediate_size=896,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    )
    small = LanguageConfig(
        vocab_size=102400, hidden_size=2048, intermediate_size=10944, num_hidden_layers=27,
        num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None,
        n_routed_experts=64, num_experts_per_tok=6, n_shared_experts=2, moe_intermediate_size=1408,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    )
    base = LanguageConfig(
        vocab_size=129280, hidden_size=2560, intermediate_size=12288, num_hidden_layers=30,
        num_attention_heads=32, num_key_value_heads=32, q_lora_rank=None,
        n_routed_experts=72, num_experts_per_tok=6, n_shared_experts=2, moe_intermediate_size=1536,
        first_k_dense_replace=1, n_group=1, topk_group=1,
        topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.0,
    )
    # The toy keeps every idea at a size two laptop cores can train: latent attention, shared and routed experts,
    # and 7 x 7 patches, an odd grid, so that the projector has to pad it to 8 x 8 as the real one pads 27 to 28.
    toy = LanguageConfig(
        vocab_size=640, hidden_size=128, intermediate_size=256, num_hidden_layers=4, max_position_embeddings=1024,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=None,
        kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=64,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    )
    sizes = {
        name: Config(siglip, ProjectorConfig(n_embed=lang.hidden_size), lang)
        for name, lang in (("tiny", tiny), ("small", small), ("base", base))
    }
    return {
        "toy": Config(
            VisionConfig(image_size=56, patch_size=8, width=96, layers=3, heads=4, mlp_ratio=4.0),
            ProjectorConfig(input_dim=96, n_embed=128), toy, paper_candidates(tile=56)),
        **sizes,
    }


SIZES = _sizes()
