"""Mixture of experts: many small MLPs, of which every token visits a few, beside one that all tokens visit.

Paper    DeepSeekMoE, arXiv:2401.06066, Eqs. 9-14; DeepSeek-V2, arXiv:2405.04434, section 2.2;
         the gate of the base model: arXiv:2408.15664 (loss-free balancing) and DeepSeek-V3, arXiv:2412.19437, Eqs. 12-16.
Lesson   lessons/06_experts.ipynb
Tests    tests/test_experts.py                 Letters    the legend in minivl2/config.py

DeepSeek-VL2-Tiny holds 3.4 billion parameters and computes with 1.0 billion of them for a token: the gate sends each
token to 6 of 64 experts. What every token needs is left to the shared experts, so the others can specialise.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minivl2.config import LanguageConfig


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). A dense layer, one expert, and the shared experts are all this."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Routing(NamedTuple):
    """Where the gate sends each of n tokens."""

    experts: Tensor     # (n, K) indices of the chosen experts
    weights: Tensor     # (n, K) how much each of them counts
    scores: Tensor      # (n, E) what the gate thought of all of them

    @property
    def load(self) -> Tensor:
        """How often each expert was chosen, (E,)."""
        return self.experts.flatten().bincount(minlength=self.scores.shape[1])


class Gate(nn.Module):
    """Scores every expert for every token and chooses K. Always in float32: a choice is not forgiving."""

    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.cfg = cfg
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if cfg.topk_method == "noaux_tc":   # moved by step_bias, never by a gradient, hence not a parameter
            self.register_buffer("bias", torch.zeros(cfg.n_routed_experts, dtype=torch.float32))

    def forward(self, x: Tensor) -> Routing:
        """x: (n, D)"""
        cfg = self.cfg
        at_least_float32 = torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(at_least_float32), self.weight.to(at_least_float32))
        scores = logits.softmax(-1) if cfg.scoring_func == "softmax" else logits.sigmoid()
        experts = self.choose(scores.detach())
        weights = scores.gather(1, experts)     # of the plain scores: the bias decides who, never how much
        if cfg.norm_topk_prob and cfg.num_experts_per_tok > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts, weights * cfg.routed_scaling_factor, scores)

    def choose(self, scores: Tensor) -> Tensor:
        """scores (n, E) -> (n, K) indices. The three published ways to choose."""
        cfg = self.cfg
        if cfg.topk_method == "group_limited_greedy":       # a group is as good as its best expert
            scores = self.keep_best_groups(scores, best=1)
        elif cfg.topk_method == "noaux_tc":                 # a group is as good as its best two, biased
            scores = self.keep_best_groups(scores + self.bias, best=2)
        return scores.topk(cfg.num_experts_per_tok, dim=-1).indices

    def keep_best_groups(self, scores: Tensor, best: int) -> Tensor:
        """Strike out (-inf) all experts outside the topk_group best groups, so that a token visits few machines."""
        grouped = scores.unflatten(1, (self.cfg.n_group, -1))                               # (n, groups, E/groups)
        group_scores = grouped.topk(best, dim=-1).values.sum(-1)                            # (n, groups)
        kept = group_scores.topk(self.cfg.topk_group, dim=-1).indices
        struck = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, kept, False)
        return grouped.masked_fill(struck[..., None], -torch.inf).flatten(1)

    @torch.no_grad()
    def step_bias(self, load: Tensor, step: float = 0.001) -> None:
        """Loss-free balancing (arXiv:2408.15664, algorithm 1), after an optimiser step. load (E,): how often each expert
        was chosen. Those chosen less than their share become easier to choose, the others harder, by a fixed step."""
        load = load.to(self.bias.dtype)
        self.bias += step * (load.mean() - load).sign()


class MixtureOfExperts(nn.Module):
    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.gate = Gate(cfg)
        self.experts = nn.ModuleList(MLP(cfg.hidden_size, cfg.moe_intermediate_size) for _ in range(cfg.n_routed_experts))
        shared = (cfg.n_shared_experts or 0) * cfg.moe_intermediate_size     # n shared experts are one, n times as wide
        self.shared = MLP(cfg.hidden_size, shared) if shared else None

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x: (B, T, D). Returns (B, T, D) and where each of the B*T tokens was sent."""
        tokens = x.flatten(0, 1)                                                # (n, D)
        routing = self.gate(tokens)
        out = self.direct(tokens, routing) if len(tokens) == 1 else self.routed(tokens, routing)
        if self.shared is not None:
            out = out + self.shared(tokens)
        return out.view_as(x), routing

    def routed(self, tokens: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of every token's chosen experts. (n, D) -> (n, D)

        The n*K visits are sorted by expert, so that each expert reads its visitors in one piece; an expert nobody visits is
        not even looked at. Its answers are added where they belong at once: those of all visits, K times as large as the
        tokens, are never in memory together.
        """
        order = routing.experts.flatten().argsort(stable=True)                  # visits, by expert
        token = order // routing.experts.shape[1]                               # visit i is token i // K
        weight = routing.weights.flatten()[order, None]
        load = routing.load
        visited = load.nonzero().flatten()
        groups = (of_all.split(load[visited].tolist()) for of_all in (tokens[token], token, weight))
        at_least_float32 = torch.promote_types(tokens.dtype, weight.dtype)      # as the gate's weights are
        out = torch.zeros_like(tokens, dtype=at_least_float32)
        for e, visitors, where, counts in zip(visited.tolist(), *groups, strict=True):
            out.index_add_(0, where, self.experts[e](visitors) * counts)
        return out.type_as(tokens)

    def direct(self, token: Tensor, routing: Routing) -> Tensor:
        """The same for a token alone, (1, D) -> (1, D): its K experts, one after another, with nothing to sort.

        This is every word of an answer, in every layer: to sort six visits, each to another expert, helps nobody.
        """
        answers = torch.cat([self.experts[e](token) for e in routing.experts[0].tolist()])      # (K, D)
        return (answers * routing.weights[0, :, None]).sum(0, keepdim=True).type_as(token)


def balance_loss(routing: Routing, real: Tensor, per_sequence: bool = True) -> Tensor:
    """How unevenly the experts are used: 1 when perfectly even, E/K when all go to the same K (DeepSeek-V2, Eqs. 23-25).

    real (B, T) bool leaves padding out. For each sequence and expert, f = (times chosen) * E / (K * tokens) and
    P = mean score; the loss is the sum of f * P over experts, averaged over sequences. f has no gradient: the loss
    pulls down the *scores* of the experts that are chosen too often. per_sequence=False takes the batch as one.
    """
    E, K = routing.scores.shape[1], routing.experts.shape[1]
    B, T = real.shape if per_sequence else (1, real.numel())
    real = real.reshape(B, T, 1).type_as(routing.scores)
    tokens = real.sum(1).clamp(min=1)                                           # (B, 1)
    chosen = torch.zeros_like(routing.scores).scatter(1, routing.experts, 1.0).view(B, T, E)
    f = (chosen * real).sum(1) * E / (K * tokens)                               # (B, E)
    P = (routing.scores.view(B, T, E) * real).sum(1) / tokens
    return (f * P).sum(1).mean()
