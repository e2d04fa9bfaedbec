"""Attention, in the two forms DeepSeek-VL2 uses: multi-head (Tiny) and latent (Small, Base).

Paper    Attention Is All You Need, arXiv:1706.03762, section 3.2.
         DeepSeek-V2, arXiv:2405.04434, section 2.1. "Eq. n" below is an equation of that paper.
Lesson   lessons/04_attention.ipynb (multi-head), lessons/05_latent_attention.ipynb (latent)
Tests    tests/test_attention.py                Letters    the legend in minivl2/config.py

Multi-head attention remembers a key and a value for every head: for Small that would be 2 * 16 * 128 = 4096 numbers
a token and layer. Latent attention (MLA) remembers one latent of 512 numbers, which every head unpacks into a key and
a value of its own, and one rotary key of 64 that all heads share: 576 numbers, 7 times fewer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from minivl2.cache import LayerCache
from minivl2.config import LanguageConfig
from minivl2.rope import rotate_half_split, rotate_interleaved

Rotation = tuple[Tensor, Tensor]
PIECE = 2**21       # scores computed at a time: 4 MB in bfloat16


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v: for each query, the mean of the values, weighted by how well their keys match it.

    q (B, H, T, d), k (B, H, S, d), v (B, H, S, any width). seen (B, 1, T, S) bool: which keys a query may look at
    (None: all). scale: 1 / sqrt(d) if not given; it keeps the scores from growing with d.

    The same sum is written three times, each for where it is fastest.
    """
    if has_torch_function((q, k, v)):       # so that who listens to torch (record.py) hears this, too, as one call
        return handle_torch_function(attend, (q, k, v), q, k, v, seen, scale)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if q.device.type != "cpu":
        return fused(q, k, v, seen, scale)
    if q.requires_grad:
        return by_hand(q, k, v, seen, scale)
    return fused(q, k, v, seen, scale) if q.dtype.itemsize > 2 else in_pieces(q, k, v, seen, scale)


def by_hand(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """For learning on a CPU, where the backward pass of the fused kernel takes twice as long."""
    return shares(q, k, seen, scale) @ v


def shares(q: Tensor, k: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """How each query divides its attention among the keys: (B, H, T, S), adding up to 1."""
    scores = (q * scale) @ k.mT
    if seen is not None:
        scores = scores + torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -torch.inf)    # no cost backward
    return scores.softmax(-1)                               # of bfloat16 scores, too, torch sums in float32


def fused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """By torch's kernel, which never writes the scores to memory. It wants values as wide as keys, or falls back to one
    3 times slower; widened with zeros they are, and zeros add nothing to a dot product."""
    width, widest = v.shape[-1], max(q.shape[-1], v.shape[-1])
    q, k, v = (F.pad(t, (0, widest - t.shape[-1])) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)[..., :width]


def in_pieces(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """By hand, a few queries at a time: for answering in bfloat16 on a CPU, where torch's fused kernel reaches a third of
    the speed of torch's plain product.

    A piece's scores fit the processor's cache, and keys that none of its queries may look at are left out: of a prompt,
    which never looks ahead, almost half. Keys are laid out in one piece first, because the batched product would
    otherwise copy them itself, transposed, number by number.
    """
    B, H, T, _ = q.shape
    S = k.shape[2]
    out = q.new_empty(B, T, H, v.shape[-1]).transpose(1, 2)         # the order in which the heads are joined next
    few = max(1, PIECE // (H * S))
    for b in range(B):
        queries, keys, values = q[b] * scale, k[b].contiguous(), v[b].contiguous()
        for t in range(0, T, few):
            piece, reach = slice(t, t + few), S
            if seen is not None:
                hidden = ~seen[b, :, piece]                                         # (1, few, S)
                reach = S - int(hidden.all(1).flip(-1).long().argmin())             # up to the last key that is seen
            scores = torch.bmm(queries[:, piece], keys[:, :reach].mT)               # (H, few, reach)
            if seen is not None:
                scores.masked_fill_(hidden[..., :reach], -torch.inf)
            out[b, :, piece] = torch.bmm(scores.softmax(-1), values[:, :reach])
    return out


class MultiHeadAttention(nn.Module):
    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.head_dim = cfg.head_dim
        key_width = cfg.num_key_value_heads * cfg.head_dim
        self.q_proj = nn.Linear(cfg.hidden_size, cfg.hidden_size, bias=False)
        self.k_proj = nn.Linear(cfg.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(cfg.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(cfg.hidden_size, cfg.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, seen: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, D), the tokens that follow those in the cache. seen (B, 1, T, S): who may look at whom."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)          # (B, H, T, d)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate_half_split(q, *rotation), rotate_half_split(k, *rotation)
        if cache is not None:
            k, v = cache.append(k, v)                                           # (B, H, S, d)
        sharing = q.shape[1] // k.shape[1]      # if there are fewer key heads than query heads, neighbours share one
        if sharing > 1:                         # 1 in Tiny: repeated once, all that is remembered would be copied
            k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
        mixed = attend(q, k, v, seen)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class LatentAttention(nn.Module):
    """Multi-head Latent Attention. Stored two matrices at a time, as published: [content; rotary], [key; value]."""

    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        D, H, C = cfg.hidden_size, cfg.num_attention_heads, cfg.kv_lora_rank
        N, R, v = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
        self.H, self.C, self.N, self.R, self.v = H, C, N, R, v
        if cfg.q_lora_rank is None:
            self.q_proj = nn.Linear(D, H * (N + R), bias=False)
        else:
            self.q_down = nn.Linear(D, cfg.q_lora_rank, bias=False)             # W^DQ
            self.q_norm = nn.RMSNorm(cfg.q_lora_rank, eps=cfg.rms_norm_eps)
            self.q_up = nn.Linear(cfg.q_lora_rank, H * (N + R), bias=False)     # W^UQ and W^QR
        self.kv_down = nn.Linear(D, C + R, bias=False)                          # W^DKV and W^KR
        self.kv_norm = nn.RMSNorm(C, eps=cfg.rms_norm_eps)                      # not in Eq. 9; see section 3.1.2
        self.kv_up = nn.Linear(C, H * (N + v), bias=False)                      # W^UK and W^UV
        self.o_proj = nn.Linear(H * v, D, bias=False)                           # W^O

    def forward(self, x: Tensor, rotation: Rotation, seen: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, D), the tokens that follow those in the cache. seen (B, 1, T, S): who may look at whom."""
        q = self.query(x).unflatten(-1, (self.H, self.N + self.R)).transpose(1, 2)      # (B, H, T, N+R)
        q_nope, q_rope = q.split([self.N, self.R], dim=-1)
        q_rope = rotate_interleaved(q_rope, *rotation)                                  # Eq. 14

        latent, k_rope = self.kv_down(x).split([self.C, self.R], dim=-1)
        latent = self.kv_norm(latent)[:, None]                                          # Eq. 9,  (B, 1, T, C)
        k_rope = rotate_interleaved(k_rope[:, None], *rotation)                         # Eq. 15, (B, 1, T, R)
        if cache is not None:       # latent and k_rope are all there is to remember
            latent, k_rope = cache.append(latent, k_rope)                               # (B, 1, S, C), (B, 1, S, R)

        form = self.absorbed if cache is not None and self.few(x.shape[1], latent.shape[2]) else self.expanded
        mixed = form(q_nope, q_rope, latent, k_rope, seen)                            # (B, H, T, v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))                            # Eq. 19

    def few(self, T: int, S: int) -> bool:
        """Is it less work to absorb than to expand? Counted in multiplications a head.

        Unpacking costs per *remembered* token, absorbing per *new* one; but a score between latents costs C, between keys
        N. So a prompt is expanded, a word of the answer absorbed, and so is a short question after a long picture.
        """
        unpack, scores = self.C * (self.N + self.v), S * T
        return T * unpack + scores * 2 * self.C < S * unpack + scores * (self.N + self.v)

    def query(self, x: Tensor) -> Tensor:
        """Straight from x in all published models; through a latent of its own (Eqs. 12-13) where q_lora_rank is set."""
        return self.q_proj(x) if hasattr(self, "q_proj") else self.q_up(self.q_norm(self.q_down(x)))

    def expanded(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, seen: Tensor) -> Tensor:
        """Unpack a key and a value for every head, then attend: the paper's equations, read in order."""
        kv = self.kv_up(latent[:, 0]).unflatten(-1, (self.H, self.N + self.v)).transpose(1, 2)
        k_nope, value = kv.split([self.N, self.v], dim=-1)                              # Eqs. 10, 11, (B, H, S, ..)
        q = torch.cat((q_nope, q_rope), dim=-1)                                         # Eq. 16
        k = torch.cat((k_nope, k_rope.expand(-1, self.H, -1, -1)), dim=-1)              # Eq. 17
        return attend(q, k, value, seen, self.scale)                                    # Eq. 18

    def absorbed(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, seen: Tensor) -> Tensor:
        """The same sums, regrouped: attend to the latents themselves and never build a key or a value.

        q . (W^UK c) = (W^UK^T q) . c, and a weighted mean of W^UV c is W^UV times the weighted mean of c. The dot
        product of two joined vectors is the sum of two dot products, so nothing is concatenated either.
        """
        W_uk, W_uv = self.kv_up.weight.unflatten(0, (self.H, -1)).split([self.N, self.v], dim=1)
        q_latent = torch.einsum("bhtn,hnc->bhtc", q_nope, W_uk)
        # All heads look at the same latents, so one matrix holds the queries of all heads. Row by row of the batch:
        # a batched product would first copy the latents, transposed, once for every head.
        rows = zip(q_latent.flatten(1, 2), q_rope.flatten(1, 2), latent[:, 0], k_rope[:, 0], strict=True)
        scores = torch.stack([F.linear(content, c) + F.linear(rotary, r) for content, rotary, c, r in rows])
        scores = scores.unflatten(1, (self.H, -1)) * self.scale                         # (B, H, T, S)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        mean = torch.stack([w @ c for w, c in zip(weights.flatten(1, 2), latent[:, 0], strict=True)])   # (B, H*T, C)
        return torch.einsum("bhtc,hvc->bhtv", mean.unflatten(1, (self.H, -1)), W_uv.contiguous())

    @property
    def scale(self) -> float:
        """Of the whole query head, content and rotary part together, before any padding."""
        return (self.N + self.R) ** -0.5
