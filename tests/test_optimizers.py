"""Optimisers: Muon beside torch's own and beside a singular value decomposition, and the team's float32 learner."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minivl2.training import optimizers, team
from minivl2.training.optimizers import Learner, Muon, orthogonal

sizes = st.integers(2, 24)


@settings(deadline=None)
@given(rows=sizes, columns=sizes, scale=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_an_orthogonal_matrix_keeps_the_directions_and_evens_their_sizes(rows, columns, scale, seed):
    """U S V^T becomes about U V^T, whatever S is: the iteration ends with singular values between 0.6 and 1.3."""
    torch.manual_seed(seed)
    n = min(rows, columns)
    U, V = (torch.linalg.qr(torch.randn(side, side))[0][:, :n] for side in (rows, columns))
    S = torch.linspace(1, 0.2, n)
    found = U.T @ orthogonal(scale * (U * S) @ V.T) @ V
    torch.testing.assert_close(found, found.diag().diag(), atol=2e-3, rtol=0)       # the directions
    assert found.diag().min() > 0.6 and found.diag().max() < 1.3                    # their sizes


@pytest.mark.parametrize("shape", [(12, 12), (8, 30), (30, 8)])
def test_muon_steps_as_torch_does(shape):
    """torch rounds to bfloat16 on the way, so a step agrees to a few parts in a hundred of its own size."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    before = ours.detach().clone()
    optimizer = Muon([ours], lr=0.01, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    assert (ours - theirs).norm() < 0.05 * (theirs - before).norm()


@given(rows=st.lists(st.integers(1, 7), min_size=1, max_size=3), size=st.integers(1, 5))
def test_a_team_divides_work_so_that_each_row_is_done_once(rows, size):
    """Each process in turn, alone here: what it would send is written down, and what all send is what all get."""
    stacks = [10.0 * i + torch.arange(1.0, n + 1).view(n, 1, 1).expand(n, 2, 3) for i, n in enumerate(rows)]
    done, sent = [], []

    def work(part):
        done.extend(part[:, 0, 0].tolist())
        return 2 * part

    def everybody_sends(answers, own):
        sent.append(own)
        answers[: len(sent)] = sent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "size", lambda: size)
        patch.setattr(team.dist, "all_gather", everybody_sends)
        for rank in range(size):
            patch.setattr(team, "rank", lambda rank=rank: rank)
            answers = team.divided(work, stacks)
    assert sorted(done) == [x for stack in stacks for x in stack[:, 0, 0].tolist()]
    assert all(torch.equal(answer, 2 * stack) for answer, stack in zip(answers, stacks, strict=True))


def test_matrices_that_share_a_shape_do_not_disturb_each_other():
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (6, 4), (4, 6), (6, 4))]
    alone = [nn.Parameter(p.detach().clone()) for p in params]
    for together, single in zip(params, alone, strict=True):
        together.grad = torch.randn_like(together)
        single.grad = together.grad.clone()
        Muon([single]).step()
    Muon(params).step()
    for together, single in zip(params, alone, strict=True):
        torch.testing.assert_close(together, single)


def test_a_convolution_over_patches_is_stepped_as_the_matrix_it_is():
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(5, 3, 2, 2))
    matrix = nn.Parameter(filters.detach().flatten(1).clone())
    filters.grad = torch.randn(5, 3, 2, 2)
    matrix.grad = filters.grad.flatten(1)
    Muon([filters]).step()
    Muon([matrix]).step()
    torch.testing.assert_close(filters.flatten(1), matrix)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_frozen_does_not_move_and_costs_no_gradient(dtype):
    module = Two()
    learner = Learner(module, dtype)
    before = copy.deepcopy(module.state_dict())
    for frozen, moves in ((("first",), {"second"}), ((), {"first", "second"})):
        learner.freeze(frozen)
        learner.working(torch.ones(3, 4, dtype=dtype)).square().sum().backward()
        assert (learner.working.first.weight.grad is None) == bool(frozen)
        learner.step(1.0)
        learner.hand_out()
        moved = {name.split(".")[0] for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
        assert moved == moves


def test_updates_too_small_for_bfloat16_add_up():
    """A step of 2e-4 is lost on a bfloat16 weight of 1, whose next neighbour is 0.992. A hundred steps are not."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    learner = Learner(module, torch.bfloat16)
    for _ in range(100):
        learner.working(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        learner.step(0.33)
        learner.hand_out()
    assert learner.working.weight.dtype == torch.bfloat16
    assert learner.working.weight.item() < 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_follows_its_own_gradient_not_those_before(dtype):
    """Without momentum the same gradient gives the same step, however often."""
    learner = Learner(Two(), dtype)
    sizes = []
    for _ in range(3):
        learner.working(torch.ones(3, 4, dtype=dtype)).sum().backward()
        sizes.append(learner.step(0.0))
    assert sizes == [sizes[0]] * 3


def test_embeddings_heads_and_gates_are_not_maps():
    maps = {"decoder.layers.1.mlp.experts.0.up_proj.weight": (6, 4),
            "decoder.layers.1.mlp.experts.0.gate_proj.weight": (6, 4),
            "decoder.layers.0.mlp.gate_proj.weight": (6, 4), "vision.patch_embed.weight": (4, 3, 8, 8),
            "decoder.layers.2.attn.kv_down.weight": (4, 4), "projector.layers.0.weight": (4, 8)}
    others = {"decoder.embed.weight": (9, 4), "decoder.head.weight": (9, 4), "decoder.layers.1.mlp.gate.weight": (5, 4),
              "vision.norm.weight": (4,), "vision.patch_embed.bias": (4,), "vision.pos_embed": (1, 9, 4),
              "image_newline": (4,), "text_embed.weight": (9, 4), "head_letters.weight": (3, 4), "head_scale": ()}
    for name, shape in (maps | others).items():
        assert optimizers.is_map(name, nn.Parameter(torch.zeros(shape))) == (name in maps), name


@given(st.floats(0, 1))
def test_the_rate_at_any_progress(progress):
    """A straight line to 1 in the first fiftieth, then half a cosine down to a twentieth."""
    if progress < 0.02:
        wanted = progress * 50
    else:
        angle = math.pi * (progress - 0.02) / 0.98
        wanted = 0.05 + 0.95 * (0.5 + 0.5 * math.cos(angle))
    assert optimizers.rate(progress) == pytest.approx(wanted, abs=1e-12)


def test_the_rate_begins_at_nothing_reaches_all_and_keeps_a_little():
    assert [optimizers.rate(progress) for progress in (0, 0.01, 0.015, 0.02, 0.51, 1)] == pytest.approx(
        [0, 0.5, 0.75, 1, 0.525, 0.05])


@pytest.mark.parametrize("progress, wanted", [(0, 1), (0.49, 1), (0.5, 10**-0.5), (0.74, 10**-0.5), (0.75, 0.1), (1, 0.1)])
def test_the_papers_steps_divide_by_the_root_of_ten_twice(progress, wanted):
    assert optimizers.stepped(progress) == pytest.approx(wanted)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_stack_of_matrices_is_made_orthogonal_each_by_itself(scale):
    torch.manual_seed(0)
    stack = torch.randn(3, 2, 5, 4) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1, 1) * scale
    found = optimizers.orthogonal(stack)
    assert found.shape == stack.shape
    alone = stack / stack.norm(dim=(-2, -1), keepdim=True)      # no step: each divided by its own norm, and no more
    torch.testing.assert_close(optimizers.orthogonal(stack, steps=0), alone, atol=0, rtol=1e-3)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(found[i, j], optimizers.orthogonal(stack[i, j]))
            assert torch.linalg.svdvals(found[i, j]).min() > 0.6


def test_a_gradient_of_zeros_stays_zero():
    """An expert that nobody visited: no direction, no step, and no 0/0."""
    assert not optimizers.orthogonal(torch.zeros(3, 5)).any()
