"""The gate, the experts and their balance, against loops over the papers' equations and against transformers."""

import dataclasses

import pytest
import reference
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from minivl2.experts import MLP, Gate, MixtureOfExperts, Routing, balance_loss

SEEDS = st.integers(0, 999)


@st.composite
def gates(draw):
    """A configuration with any of the three ways to choose, both scorings, with and without normalisation."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    return small.language(
        hidden_size=draw(st.integers(2, 6)), n_routed_experts=groups * size,
        num_experts_per_tok=draw(st.integers(1, kept * size)), n_group=groups, topk_group=kept,
        n_shared_experts=draw(st.sampled_from([None, 1, 2])),
        topk_method=draw(st.sampled_from(["greedy", "group_limited_greedy", "noaux_tc"])),
        scoring_func=draw(st.sampled_from(["softmax", "sigmoid"])), norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])))


def gate_of(cfg, seed, bias_shift=0.0):
    gate = small.randomised(Gate(cfg), seed)
    if cfg.topk_method == "noaux_tc":
        gate.bias += bias_shift
    return gate


def of_reference(gate, x):
    bias = getattr(gate, "bias", None)
    return [reference.gate(row, gate.weight, bias=bias, **reference.choosing(gate.cfg)) for row in x]


# ------------------------------------------------------------------------------------------ one MLP


@torch.no_grad()
@given(st.integers(1, 6), st.integers(1, 6), SEEDS)
def test_an_mlp_is_swiglu(width, inner, seed):
    mlp = small.randomised(MLP(width, inner), seed)
    x = small.numbers(3, width, seed=seed)
    assert_close(mlp(x), torch.stack([reference.swiglu(row, mlp.state_dict()) for row in x]))


def test_an_mlp_is_three_matrices_as_published():
    shapes = {name: tuple(p.shape) for name, p in MLP(3, 5).named_parameters() if p.requires_grad}
    assert shapes == {"gate_proj.weight": (5, 3), "up_proj.weight": (5, 3), "down_proj.weight": (3, 5)}


# ------------------------------------------------------------------------------------------ the gate


@torch.no_grad()
@given(gates(), st.sampled_from([0.0, -3.0]), SEEDS)
def test_the_gate_chooses_and_weighs_as_in_the_papers(cfg, bias_shift, seed):
    """bias_shift -3: all biased scores are negative, and an expert struck out with 0 would be the best of all."""
    gate = gate_of(cfg, seed, bias_shift)
    x = small.numbers(6, cfg.hidden_size, seed=seed)
    routing = gate(x)
    for i, (wanted, scores) in enumerate(of_reference(gate, x)):
        got = dict(zip(routing.experts[i].tolist(), routing.weights[i].tolist(), strict=True))
        assert got.keys() == wanted.keys()
        assert got == pytest.approx(wanted)
        assert routing.scores[i].tolist() == pytest.approx(scores)


def gate_with_scores(scores, **changes):
    """A gate that gives these sigmoid scores to the one token [1]."""
    cfg = small.language(hidden_size=1, n_routed_experts=len(scores), scoring_func="sigmoid", **changes)
    gate = Gate(cfg).double()
    with torch.no_grad():
        gate.weight.copy_(torch.tensor(scores, dtype=torch.float64).logit()[:, None])
    return gate, torch.ones(1, 1, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("method, chosen", [
    ("greedy", {0, 2}),                     # the two best experts
    ("group_limited_greedy", {0, 1}),       # the group of the best expert
    ("noaux_tc", {2, 3}),                   # the group whose best two are best together: 0.8 + 0.7 > 0.9 + 0.1
])
def test_a_group_is_worth_its_best_expert_or_its_best_two(method, chosen):
    gate, token = gate_with_scores(
        [0.9, 0.1, 0.8, 0.7], topk_method=method, num_experts_per_tok=2, n_group=2, topk_group=1)
    assert set(gate(token).experts[0].tolist()) == chosen


@torch.no_grad()
def test_a_group_of_many_small_experts_does_not_outweigh_one_of_two_good_ones():
    gate, token = gate_with_scores(     # sums 1.5 and 1.6; best two 1.4 and 0.8
        [0.7, 0.7, 0.05, 0.05, 0.4, 0.4, 0.4, 0.4], topk_method="noaux_tc", num_experts_per_tok=2, n_group=2, topk_group=1)
    assert set(gate(token).experts[0].tolist()) == {0, 1}


@torch.no_grad()
def test_the_bias_decides_who_is_chosen_and_not_how_much_it_counts():
    gate, token = gate_with_scores([0.9, 0.5, 0.4, 0.3], topk_method="noaux_tc", num_experts_per_tok=2, n_group=1)
    gate.bias.copy_(torch.tensor([-1.0, 0.0, 0.0, 1.0]))
    routing = gate(token)
    got = dict(zip(routing.experts[0].tolist(), routing.weights[0].tolist(), strict=True))
    assert got == pytest.approx({3: 0.3, 1: 0.5})


@torch.no_grad()
def test_the_gate_thinks_in_float32_even_when_the_model_is_in_bfloat16():
    """In bfloat16 many of 64 experts get the same score, and the choice among them is chance."""
    cfg = small.language(hidden_size=32, n_routed_experts=64, num_experts_per_tok=6)
    gate = small.randomised(Gate(cfg), dtype=torch.bfloat16)
    x = small.numbers(50, 32, dtype=torch.bfloat16)
    routing = gate(x)
    exact = small.randomised(Gate(cfg), dtype=torch.bfloat16).double()(x.double())
    assert routing.experts.tolist() == exact.experts.tolist()
    assert_close(routing.weights, exact.weights.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, small.SIGMOID], ids=["greedy", "sigmoid"])
def test_the_gate_learns_through_its_weights(changes):
    """The choice has no gradient; how much a chosen expert counts has one, as steep as the papers' sums are."""
    gate = small.randomised(Gate(small.language(hidden_size=3, **changes)))
    x, counts = small.numbers(1, 3, seed=2), small.numbers(4)
    x.requires_grad_()
    routing = gate(x)
    (routing.weights * counts[routing.experts]).sum().backward()

    def steepness(of, step=1e-6):
        """Of the same sum, along each number of a tensor, by trying."""
        slopes = torch.zeros_like(of)
        with torch.no_grad():
            for i in range(of.numel()):
                tried = []
                for way in (step, -step):
                    of.view(-1)[i] += way
                    [(chosen, _)] = of_reference(gate, x)
                    tried.append(sum(weight * counts[e].item() for e, weight in chosen.items()))
                    of.view(-1)[i] -= way
                slopes.view(-1)[i] = (tried[0] - tried[1]) / (2 * step)
        return slopes

    assert_close(gate.weight.grad, steepness(gate.weight), atol=1e-7, rtol=1e-5)
    assert_close(x.grad, steepness(x), atol=1e-7, rtol=1e-5)


def test_the_bias_is_saved_with_the_model_and_never_gets_a_gradient():
    gate = Gate(small.language(**small.SIGMOID))
    assert "bias" in gate.state_dict() and "bias" not in dict(gate.named_parameters())
    assert gate.bias.dtype == torch.float32
    assert "bias" not in Gate(small.language()).state_dict()       # the softmax gates have none


# ------------------------------------------------------------------------------------------ the mixture


@torch.no_grad()
@given(gates(), st.sampled_from([(1, 1), (2, 3), (1, 7)]), SEEDS)
def test_a_mixture_of_experts_is_the_papers_sums(cfg, shape, seed):
    moe = small.randomised(MixtureOfExperts(cfg), seed)
    x = small.numbers(*shape, cfg.hidden_size, seed=seed)
    got, routing = moe(x)
    how = reference.choosing(cfg)
    for b in range(shape[0]):
        for t in range(shape[1]):
            assert_close(got[b, t], reference.mixture_of_experts(x[b, t], moe.state_dict(), **how))
    assert len(routing.experts) == shape[0] * shape[1]


@torch.no_grad()
@given(st.permutations(range(8)), SEEDS)
def test_each_token_gets_its_own_answer_back_wherever_it_stands(order, seed):
    moe = small.randomised(MixtureOfExperts(small.language()), seed)
    x = small.numbers(1, 8, 16, seed=seed)
    assert_close(moe(x[:, order])[0], moe(x)[0][:, order])


def test_an_expert_that_nobody_visits_breaks_neither_pass():
    moe = small.randomised(MixtureOfExperts(small.language(num_experts_per_tok=1)))
    with torch.no_grad():
        moe.gate.weight.copy_(torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]]).expand(4, 16))
    x = small.numbers(1, 5, 16).abs()           # positive vectors all go to expert 0
    out, routing = moe(x)
    assert routing.experts.flatten().tolist() == [0] * 5
    out.square().sum().backward()
    assert moe.experts[0].up_proj.weight.grad.abs().sum() > 0
    assert moe.gate.weight.grad.isfinite().all()
    for idle in moe.experts[1:]:
        assert all(p.grad is None or not p.grad.any() for p in idle.parameters())


def test_gradients_equal_those_of_the_papers_sums():
    """Sorting and returning the visits is part of the graph: the backward pass must undo it too."""
    moe = small.randomised(MixtureOfExperts(small.language(**small.SIGMOID)))
    x = small.numbers(1, 4, 16).requires_grad_()
    moe(x)[0].square().sum().backward()
    direction, step = small.numbers(1, 4, 16, seed=5), 1e-5

    def loss(at):
        rows = [reference.mixture_of_experts(t, moe.state_dict(), **reference.choosing(moe.gate.cfg)) for t in at[0]]
        return torch.stack(rows).square().sum().item()

    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert (x.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)


class Times(nn.Module):
    """An expert whose answer is exact in any precision."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@torch.no_grad()
def test_answers_are_weighed_and_summed_in_float32_and_rounded_once():
    moe = MixtureOfExperts(small.language()).bfloat16()
    moe.experts = nn.ModuleList(Times(2.0**i) for i in range(4))
    tokens = small.numbers(6, 16, dtype=torch.bfloat16)
    experts = torch.tensor([[0, 1], [3, 2], [1, 3], [2, 0], [0, 3], [1, 2]])
    weights = small.numbers(6, 2, seed=1, dtype=torch.float32)
    got = moe.routed(tokens, Routing(experts, weights, torch.empty(len(tokens), 4)))
    exact = (tokens.double()[:, None] * 2.0**experts[..., None] * weights.double()[..., None]).sum(1)
    assert_close(got, exact.bfloat16(), atol=0, rtol=0)
    for i in range(len(tokens)):
        one = slice(i, i + 1)
        alone = moe.direct(tokens[one], Routing(experts[one], weights[one], torch.empty(1, 4)))
        assert_close(alone, got[one], atol=0, rtol=0)


@given(gates(), SEEDS)
def test_a_token_alone_gets_directly_what_sorting_would_give_it(cfg, seed):
    moe = small.randomised(MixtureOfExperts(cfg), seed)
    token = small.numbers(1, cfg.hidden_size, seed=seed)
    routing = moe.gate(token)
    assert_close(moe.direct(token, routing), moe.routed(token, routing))        # but for the order in which they are summed


@torch.no_grad()
def test_only_the_experts_a_token_is_sent_to_are_looked_at():
    """One of the others would be an error. One token goes directly, two are sorted."""
    moe = small.randomised(MixtureOfExperts(small.language(n_routed_experts=8, num_experts_per_tok=2)))
    for tokens in (small.numbers(1, 1, 16), small.numbers(1, 1, 16).expand(1, 2, 16)):
        chosen = moe.gate(tokens[0]).experts[0].tolist()
        want, everyone = moe(tokens)[0], list(moe.experts)
        moe.experts = nn.ModuleList(expert if e in chosen else None for e, expert in enumerate(everyone))
        assert_close(moe(tokens)[0], want, atol=0, rtol=0)
        moe.experts = nn.ModuleList(everyone)


# ------------------------------------------------------------------------------------------ balance


def drawn_routing(B, T, E, K, seed):
    scores = small.numbers(B * T, E, seed=seed).softmax(-1)
    return Routing(scores.topk(K).indices, torch.empty(0), scores)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 6), st.booleans(), SEEDS, st.data())
def test_the_balance_loss_is_the_papers_sums_without_the_padding(B, T, E, per_sequence, seed, data):
    K = data.draw(st.integers(1, E))
    routing = drawn_routing(B, T, E, K, seed)
    real = torch.tensor([[t >= data.draw(st.integers(0, T - 1)) for t in range(T)] for _ in range(B)])
    want = reference.balance_loss(
        routing.scores.view(B, T, E).tolist(), routing.experts.view(B, T, K).tolist(), real.tolist(), per_sequence)
    assert balance_loss(routing, real, per_sequence).item() == pytest.approx(want)


def test_the_balance_loss_is_1_when_even_and_grows_to_E_over_K():
    even = Routing(torch.tensor([[0, 1], [2, 3]]), torch.empty(0), torch.full((2, 4), 0.25))
    assert balance_loss(even, torch.ones(1, 2, dtype=torch.bool)) == 1
    crowded = Routing(torch.tensor([[0, 1], [0, 1]]), torch.empty(0), torch.tensor([[0.5, 0.5, 0, 0]] * 2))
    assert balance_loss(crowded, torch.ones(1, 2, dtype=torch.bool)) == 2      # E/K = 4/2


def test_the_balance_loss_of_nothing_but_padding_is_0():
    routing = drawn_routing(2, 3, 4, 2, seed=0)
    real = torch.tensor([[False] * 3, [True] * 3])
    alone = balance_loss(Routing(routing.experts[3:], torch.empty(0), routing.scores[3:]), real[1:])
    assert_close(balance_loss(routing, real), alone / 2)


def test_sequences_are_balanced_one_by_one():
    """Each sequence uses two experts only, so each is unbalanced, although the batch as a whole is even."""
    scores = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    routing = Routing(torch.tensor([[0, 1], [2, 3]]), torch.empty(0), scores)
    real = torch.ones(2, 1, dtype=torch.bool)
    assert balance_loss(routing, real, per_sequence=True) == 2
    assert balance_loss(routing, real, per_sequence=False) == 1


def test_the_balance_loss_pulls_down_the_scores_of_crowded_experts():
    """Its gradient is f / tokens for each score: the more often an expert is chosen, the harder it is pulled."""
    scores = torch.full((4, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    experts = torch.tensor([[0], [0], [0], [1]])
    real = torch.tensor([[False, True, True, True]])       # expert 0 twice, expert 1 once among the real ones
    balance_loss(Routing(experts, torch.empty(0), scores), real).backward()
    f = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64) * 3 / 3
    assert_close(scores.grad, torch.stack((f * 0, f / 3, f / 3, f / 3)))


def test_the_balance_loss_reaches_the_gates_weights():
    gate = small.randomised(Gate(small.language()))
    balance_loss(gate(small.numbers(4, 16)), torch.ones(1, 4, dtype=torch.bool)).backward()
    assert gate.weight.grad.abs().sum() > 0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from([0.01, 0.25]), SEEDS)
def test_the_bias_moves_a_fixed_step_towards_balance(chosen, step, seed):
    gate = small.randomised(Gate(small.language(**small.SIGMOID)), seed)
    bias, want = gate.bias, reference.step_bias(gate.bias.tolist(), chosen, step)
    gate.step_bias(torch.tensor(chosen).flatten().bincount(minlength=len(gate.bias)), step=step)
    assert gate.bias.tolist() == pytest.approx(want)
    assert gate.bias is bias        # moved in place


def test_moving_the_bias_balances_the_load():
    """Without a gradient: after enough steps, a gate that sent everything to two experts uses all of them alike."""
    gate = small.randomised(Gate(small.language(hidden_size=8, n_routed_experts=6, **small.SIGMOID)))
    with torch.no_grad():
        gate.weight[:2] += 1.0
    x = small.numbers(300, 8).abs()
    for _ in range(300):
        gate.step_bias(gate(x).load, step=0.01)
    load = gate(x).experts.flatten().bincount(minlength=6)
    assert load.max() < 1.2 * load.float().mean()


# ------------------------------------------------------------------------------------------ transformers


def deepseek_moe(cfg):
    pytest.importorskip("transformers", reason="compares with a maintained implementation")
    fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name in (
        "hidden_size", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "n_group",
        "topk_group", "routed_scaling_factor", "norm_topk_prob")}
    if cfg.topk_method == "noaux_tc":
        from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs
        return theirs.DeepseekV3MoE(theirs.DeepseekV3Config(**fields, num_attention_heads=2))
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as theirs
    return theirs.DeepseekV2Moe(theirs.DeepseekV2Config(**fields, topk_method=cfg.topk_method, num_attention_heads=2))


def to_transformers(w, experts):
    """Their experts are two stacks of matrices: gate above up, and down."""
    def all_of(name):
        return torch.stack([w[f"experts.{e}.{name}.weight"] for e in range(experts)])
    theirs = {"gate.weight": w["gate.weight"], "experts.down_proj": all_of("down_proj"),
              "experts.gate_up_proj": torch.cat((all_of("gate_proj"), all_of("up_proj")), dim=1)}
    theirs |= {n.replace("shared", "shared_experts"): t for n, t in w.items() if n.startswith("shared")}
    return theirs | {"gate.e_score_correction_bias": w["gate.bias"]} if "gate.bias" in w else theirs


@torch.no_grad()
@pytest.mark.parametrize("changes", [
    {}, small.GROUPS | {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3}, small.SIGMOID,
    small.SIGMOID | {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3},
], ids=["greedy", "groups", "sigmoid", "sigmoid groups"])
@pytest.mark.parametrize("shared", [1, 2])
def test_a_mixture_of_experts_equals_transformers(changes, shared):
    cfg = small.language(**changes, n_shared_experts=shared)
    ours = small.randomised(MixtureOfExperts(cfg), dtype=torch.float32)
    theirs = deepseek_moe(cfg)
    theirs.load_state_dict(to_transformers(ours.state_dict(), cfg.n_routed_experts), strict=True)
    x = small.numbers(2, 20, 16, dtype=torch.float32)
    assert_close(ours(x)[0], theirs(x), atol=1e-5, rtol=1e-5)
