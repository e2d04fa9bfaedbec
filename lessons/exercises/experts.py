"""Exercises on minivl2/experts.py, of lesson 06. Graded by tests/test_experts.py."""

import small
import torch
from torch import nn
from torch.nn import functional as F

from minivl2 import experts
from minivl2.grading.exercise import Exercise, Mistake

# ------------------------------------------------------------------------------------------ one expert


def some_mlp():
    return small.randomised(experts.MLP(3, 4))(small.numbers(2, 3))


# ------------------------------------------------------------------------------------------ the gate


def some_gates():
    """Base's gate, and Small's, whose weights are what the softmax gives."""
    routings = []
    for changes in (small.SIGMOID | {"num_experts_per_tok": 2}, {"routed_scaling_factor": 3.0}):
        gate = small.randomised(experts.Gate(small.language(hidden_size=5, **changes)))
        if hasattr(gate, "bias"):
            gate.bias += torch.tensor([0.9, -0.4, 0.2, -0.9])
        routings += gate(small.numbers(6, 5))
    return routings


# ------------------------------------------------------------------------------------------ the mixture


def some_visits():
    moe = small.randomised(experts.MixtureOfExperts(small.language()))
    chosen = torch.tensor([[3, 0], [1, 3], [0, 1], [2, 0], [3, 1]])
    return moe.routed(small.numbers(5, 16), experts.Routing(chosen, small.numbers(5, 2, seed=1).abs(), torch.empty(5, 4)))


def in_the_order_of(visit):
    """The answers, sorted by expert, are taken for those of these visits."""
    return {"token, weight)": f"{visit} // routing.experts.shape[1], routing.weights.flatten()[{visit}, None])"}


def mean_of_the_chosen(self, tokens, routing):
    answers = torch.stack([expert(tokens) for expert in self.experts], dim=1)       # (n, E, D)
    return answers.gather(1, routing.experts[..., None].expand(-1, -1, tokens.shape[1])).mean(1)


def weights_by_rank(self, tokens, routing):
    out = torch.zeros_like(tokens)
    for e, expert in enumerate(self.experts):
        visits = (routing.experts == e).any(1)
        out[visits] += expert(tokens[visits]) * routing.weights[visits][:, :1]
    return out


def weights_on_the_way_in(self, tokens, routing):
    out = torch.zeros_like(tokens)
    for e, expert in enumerate(self.experts):
        visitor, k = (routing.experts == e).nonzero(as_tuple=True)
        out[visitor] += expert(tokens[visitor] * routing.weights[visitor, k][:, None])
    return out


# ------------------------------------------------------------------------------------------ balance


def some_balance():
    scores = small.numbers(10, 4).softmax(-1)
    real = torch.tensor([[False, True, True, True, True], [False, False, False, True, True]])
    routing = experts.Routing(scores.topk(2).indices, torch.empty(0), scores)
    return [experts.balance_loss(routing, real), experts.balance_loss(routing, real, per_sequence=False)]


def some_steps():
    gate = small.randomised(experts.Gate(small.language(**small.SIGMOID)))
    for load in ([3, 1, 0, 4], [2, 2, 2, 2], [0, 9, 1, 2]):
        gate.step_bias(torch.tensor(load), step=0.01)
    return gate.bias


class GeluMLP(nn.Module):
    """The MLP of a vision transformer, with the names of ours."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.up_proj(x)))


EXERCISES = (
    Exercise("experts.MLP", "an_mlp", some_mlp, (
        Mistake("gate and up swapped", {"gate_proj(x)) * self.up_proj(x)": "up_proj(x)) * self.gate_proj(x)"},
                "silu belongs on the gate. Yours opens the gate without it and bends what passes through instead: "
                "silu(gate(x)) * up(x), not gate(x) * silu(up(x))."),
        Mistake("no gate", GeluMLP, "the gate is missing: this is the plain two-layer MLP, down(silu(up(x)))."),
        Mistake("gelu", {"F.silu(": "F.gelu("},
                "the bend is another one: you used GELU, as SigLIP does; the decoder's experts use SiLU, x * sigmoid(x)."),
        Mistake("sigmoid", {"F.silu(": "F.sigmoid("},
                "a sigmoid alone makes a GLU. SwiGLU's gate is SiLU: x * sigmoid(x)."),
        Mistake("sum for product", {") * self.up_proj": ") + self.up_proj"},
                "gate and up are multiplied, number by number; you added them."),
        Mistake("silu on both", {"self.up_proj(x))": "F.silu(self.up_proj(x)))"}),
        Mistake("with biases", {"bias=False": "bias=True"}),
    )),
    Exercise("experts.Gate.forward", "(gate or bias_decides or group or gradients) and not transformers",
             some_gates, (
        Mistake("weights of the biased scores", {"scores.gather(": '(scores + getattr(self, "bias", 0)).gather('},
                "the bias got into the weights. It decides *who* is chosen; how much each counts is the plain score."),
        Mistake("not normalised", {"cfg.norm_topk_prob and": "False and"},
                "the weights are not divided by their sum where cfg.norm_topk_prob asks for it (the base model)."),
        Mistake("always normalised", {"cfg.norm_topk_prob and": "True and"},
                "you divide by the sum always. Only where cfg.norm_topk_prob says so: with Tiny's and Small's gate the "
                "weights of a token stay as small as the softmax made them."),
        Mistake("normalised over all experts", {"weights.sum(-1": "scores.sum(-1"},
                "you divide by the sum of all scores; it is the sum over the chosen ones that shall be 1."),
        Mistake("not scaled", {"weights * cfg.routed_scaling_factor": "weights"},
                "cfg.routed_scaling_factor is forgotten."),
        Mistake("scores scaled too", {"_factor, scores": "_factor, scores * cfg.routed_scaling_factor"}),
        Mistake("always softmax", {"logits.sigmoid()": "logits.softmax(-1)"},
                "your gate always takes a softmax; where cfg.scoring_func is \"sigmoid\" each expert is scored by itself."),
        Mistake("softmax of the chosen", {"scores.gather(1, experts)": "logits.gather(1, experts).softmax(-1)"},
                "the softmax goes over all E experts before choosing. Over the K chosen ones alone is another model's gate "
                "(Mixtral's)."),
        Mistake("the model's precision", {"torch.promote_types(x.dtype, torch.float32)": "x.dtype"}),
        Mistake("no gradient to the gate", {"weights = scores.gather": "weights = scores.detach().gather"}),
        Mistake("logits chosen, not scores", {"self.choose(scores.detach())": "self.choose(logits.detach())"}),
        Mistake("the worst chosen", {"self.choose(scores.detach())": "self.choose(-scores.detach())"},
                "your gate chooses the experts with the lowest scores."),
    )),
    Exercise("experts.MixtureOfExperts.routed",
             "(mixture or own_answer or nobody or gradients or rounded) and not transformers", some_visits, (
        Mistake("answers not brought back", in_the_order_of("torch.arange(len(order))"),
                "each expert is right, but the answers stay sorted by expert: every token gets another token's. Undo the "
                "sorting before you sum."),
        Mistake("brought back the wrong way", in_the_order_of("order.argsort()"),
                "sorting is undone by writing to the sorted places, out[order] = answers, not by reading, answers[order]. "
                "The two are equal only when the permutation is its own inverse."),
        Mistake("visit i is token i mod n", {"tokens[token]": "tokens[order % len(tokens)]"},
                "you take visit i for token i % n. The visits are read row by row from (n, K): visit i is token i // K."),
        Mistake("unweighted", mean_of_the_chosen, "the experts' answers are averaged; each shall count by routing.weights."),
        Mistake("summed without weights", {"(visitors) * counts": "(visitors).to(at_least_float32)"},
                "the experts' answers are added up; each shall count by routing.weights."),
        Mistake("first weight for all", weights_by_rank,
                "every expert of a token gets the weight of the first; weights[i, k] belongs to experts[i, k]."),
        Mistake("weights on the way in", weights_on_the_way_in,
                "the weights go onto what an expert answers, not onto what it reads: an expert is not linear."),
        Mistake("rounded before the sum", {
            "(visitors) * counts": "(visitors).mul(counts.type_as(tokens)).to(at_least_float32)"}),
        Mistake("no gradient through the experts", {"(visitors) * counts": "(visitors).detach() * counts"}),
        Mistake("shared experts counted here too", {".type_as(tokens)": ".type_as(tokens) + self.shared(tokens)"},
                "the shared expert is already in the sum: forward adds it. `routed` is the chosen ones only."),
    )),
    Exercise("experts.balance_loss", "balance_loss or one_by_one", some_balance, (
        Mistake("padding counted", {"real = real.reshape(B, T, 1)": "real = torch.ones_like(real).reshape(B, T, 1)"},
                "padding is counted. Only real tokens choose, and only their scores are averaged."),
        Mistake("divided by all tokens", {"tokens = real.sum(1).clamp(min=1)": "tokens = torch.full((B, 1), float(T))"},
                "you leave padding out of the sums and then divide by T, padding included. Divide by the real tokens."),
        Mistake("without E/K", {"* E / (K * tokens)": "/ tokens"},
                "f lacks its factor E / K, which makes the loss 1 when all experts are used alike."),
        Mistake("without K", {"(K * tokens)": "tokens"}, "f is not divided by K: each token chooses K experts, not one."),
        Mistake("scores of the chosen only", {"(routing.scores.view(B, T, E)": "(routing.scores.view(B, T, E) * chosen"},
                "P is the mean score over *all* tokens, whether or not they chose the expert."),
        Mistake("always the whole batch", {"if per_sequence else": "if False else"},
                "you balance the batch as a whole also when per_sequence is True."),
        Mistake("always each sequence", {"if per_sequence else": "if True else"},
                "you balance each sequence by itself also when per_sequence is False."),
        Mistake("summed over sequences", {".sum(1).mean()": ".sum()"},
                "the sequences' losses are averaged, not added: a bigger batch is not less balanced."),
        Mistake("mean over experts", {".sum(1).mean()": ".mean()"},
                "over experts the products f * P are added; you took their mean, which is E times too small."),
        Mistake("0/0 of a row of padding", {".clamp(min=1)": ""}),
        Mistake("f squared", {"(f * P)": "(f * f)"}),
        Mistake("no gradient", {"routing.scores.view": "routing.scores.detach().view"}),
    )),
    Exercise("experts.Gate.step_bias", "bias_moves or moving_the_bias", some_steps, (
        Mistake("wrong way", {"+=": "-="},
                "the wrong way round: an expert chosen *less* than its share must become *easier* to choose."),
        Mistake("proportional", {".sign()": ""},
                "the step grows with the imbalance. Algorithm 1 moves every bias by a fixed step: only the sign counts."),
        Mistake("median", {"load.mean()": "load.median()"},
                "a fair share is the mean of the load, not its median."),
        Mistake("even ones move too", {"(load.mean() - load).sign()": "torch.where(load > load.mean(), -1.0, 1.0)"},
                "an expert with exactly its share is not moved: the sign of 0 is 0."),
        Mistake("set, not moved", {"+=": "[:] ="}, "the bias is set anew each time; it shall move from where it is."),
        Mistake("another tensor", {"self.bias += step": "self.bias = self.bias + step"}),
        Mistake("a step of its own", {"step *": "0.01 *"}),
        Mistake("relative", {".sign()": ".sign() * self.bias.abs()"}),
    )),
)
