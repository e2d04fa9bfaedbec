"""The decoder: a DeepSeekMoE language model that reads vectors, whether they came from words or from pictures.

Paper    DeepSeek-V2, arXiv:2405.04434, figure 2; DeepSeek-VL2, section 2 "DeepSeekMoE LLM".
Tests    tests/test_decoder.py                 Letters    the legend in minivl2/config.py
"""

import torch
from torch import Tensor, nn

from minivl2.attention import LatentAttention, MultiHeadAttention, Rotation
from minivl2.cache import Cache, LayerCache
from minivl2.config import LanguageConfig
from minivl2.experts import MLP, MixtureOfExperts, Routing
from minivl2.rope import rotation


class Layer(nn.Module):
    def __init__(self, cfg: LanguageConfig, index: int):
        super().__init__()
        self.attn_norm = nn.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.attn = LatentAttention(cfg) if cfg.use_mla else MultiHeadAttention(cfg)
        self.mlp_norm = nn.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.mlp = MixtureOfExperts(cfg) if cfg.is_moe(index) else MLP(cfg.hidden_size, cfg.intermediate_size)

    def forward(
        self, x: Tensor, rotation: Rotation, seen: Tensor | None, cache: LayerCache | None
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.attn(self.attn_norm(x), rotation, seen, cache)
        out = self.mlp(self.mlp_norm(x))
        out, routing = out if isinstance(out, tuple) else (out, None)      # a dense MLP sends tokens nowhere
        return x + out, routing


class Decoder(nn.Module):
    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        nn.init.normal_(self.embed.weight, std=0.02)    # torch's 1 would drown what the layers add, and learn slowly
        self.layers = nn.ModuleList(Layer(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = nn.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)

    def forward(self, x: Tensor, real: Tensor, cache: Cache | None = None) -> tuple[Tensor, list[Routing]]:
        """x (B, T, D): vectors of the tokens after those in the cache. real (B, T) bool: False is padding.

        Returns (B, T, D), ready for `head`, and the routing of every layer that has experts. The head is left to the
        caller: in a prompt of a thousand tokens only the last one is asked for its 129,280 logits.
        """
        start = 0 if cache is None else cache.length
        all_real = real if cache is None else cache.append_real(real)
        check_length(all_real.shape[1], self.cfg.max_position_embeddings)
        turn = self.rotation(positions(all_real)[:, start:], x)
        # The usual word of an answer looks at everything so far. Saying so spares every layer a mask.
        seen = None if x.shape[1] == 1 and bool(all_real.all()) else visible(all_real, start)
        routings = []
        for i, layer in enumerate(self.layers):
            x, routing = layer(x, turn, seen, None if cache is None else cache.layers[i])
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings

    def rotation(self, positions: Tensor, x: Tensor) -> Rotation:
        """The rotary embedding turns whole heads in multi-head attention, and only the rotary part in latent attention."""
        width = self.cfg.qk_rope_head_dim if self.cfg.use_mla else self.cfg.head_dim
        return rotation(positions, width, self.cfg.rope_theta, torch.promote_types(x.dtype, torch.float32))


def positions(real: Tensor) -> Tensor:
    """(B, S) bool -> (B, S): how many real tokens stand before. Padding on the left does not shift a sentence."""
    return (real.cumsum(1) - 1).clamp(min=0)


def visible(real: Tensor, start: int) -> Tensor:
    """Which of all S tokens each new token, from `start` on, may look at: (B, 1, T, S) bool.

    At itself and at what is real and came before. Padding may look at itself too: a row of nothing would make its
    softmax 0/0, and one NaN in the cache spoils every row of the batch.
    """
    S = real.shape[1]
    new, every = torch.arange(start, S, device=real.device)[:, None], torch.arange(S, device=real.device)
    return ((every <= new) & real[:, None, :] | (every == new))[:, None]


def check_length(tokens: int, limit: int) -> None:
    if tokens > limit:
        raise ValueError(
            f"{tokens} tokens do not fit the model's context of {limit}. An image costs up to 2101 of them at full size: "
            "ask less at a time, or use fewer or smaller images.")
