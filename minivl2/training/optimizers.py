"""Muon for the maps inside, AdamW for the rest, and the learning rate over time.

Papers   Muon: arXiv:2502.16982, section 2. AdamW: arXiv:1711.05101.
Lesson   lessons/08_training.ipynb                  Tests   tests/test_optimizers.py

Muon replaces a matrix's gradient by the nearest orthogonal one, so that all directions of the matrix learn at the
same speed. It needs no second moment. The toy learns to see several times faster with it than with AdamW alone.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minivl2.training import shard, team

MUON_RATE, ADAMW_RATE = 3e-3, 2e-3
WEIGHT_DECAY = 0.01
WARMUP, LOWEST = 0.02, 0.05     # fraction of all steps to warm up; fraction of the rate that is left at the end


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon (adjust_lr_fn="match_rms_adamw"), with three differences that matter here: matrices of one
    shape are orthogonalised together (a toy has many small ones); a convolution over patches is a matrix, too; and it
    computes in float32, since bfloat16 would turn the last digits of a gradient into the third digit of a step.

    Of a team that keeps the same matrices, each process makes its part of them orthogonal, for all. A matrix that is divided
    among processes (shard.py) is orthogonalised whole, and one that is whole beside such has an owner, who steps it alone.
    """

    def __init__(self, params: Iterable, lr: float = MUON_RATE, momentum: float = 0.95, weight_decay: float = WEIGHT_DECAY):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.flatten(1).shape, shard.is_divided(p)].append(p)
            directions = {key: shard.whole(torch.stack([self._direction(p, group["momentum"]) for p in params]))
                          for key, params in alike.items()}
            some_divided = any(divided for _, divided in alike)
            common = {key: stack for key, stack in directions.items() if key[1] == some_divided}
            updates = {key: orthogonal(stack) for key, stack in directions.items() if key not in common}
            updates |= zip(common, team.divided(orthogonal, [*common.values()]), strict=True)
            for key, params in alike.items():
                rows, columns = key[0]
                # an orthogonal matrix's entries are small when it is large: this gives them AdamW's usual size
                rate = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for p, update in zip(params, updates[key], strict=True):
                    step = shard.part_of(rate * update.view(p.shape), p)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step)

    def _direction(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient as a matrix, with Nesterov momentum."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum).flatten(1)


def orthogonal(G: Tensor, steps: int = 5) -> Tensor:
    """(..., rows, columns) -> nearly U V^T of its singular value decomposition U S V^T, by Newton-Schulz iteration.

    An odd polynomial of a matrix acts on its singular values alone. This one, iterated, sends all of them to around 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = G.shape[-2] > G.shape[-1]
    X = (G.mT if tall else G).reshape(-1, min(G.shape[-2:]), max(G.shape[-2:]))
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        # Added up while they are multiplied: to add matrices this small costs as much as to multiply them.
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)         # b A + c A A
        X = torch.baddbmm(X, B, X, beta=a)                  # a X + B X
    return (X.mT if tall else X).reshape(G.shape)


def is_map(name: str, parameter: Tensor) -> bool:
    """Rows of an embedding or of a head belong to one token each, rows of a gate to one expert: those are lists of
    vectors, not maps from vectors to vectors."""
    lists = ("embed.weight", "head", "gate.weight")
    return parameter.ndim in (2, 4) and ("patch_embed" in name or not any(part in name for part in lists))


def fast(module: nn.Module, muon: float | None = None) -> list[torch.optim.Optimizer]:
    """The fastest found for the toy: two optimisers that together step every parameter."""
    inner, rest = [], []
    for name, parameter in module.named_parameters():
        (inner if is_map(name, parameter) else rest).append(parameter)
    # initial_lr is what rate() below is a fraction of
    return [
        Muon([{"params": inner, "initial_lr": muon or MUON_RATE}]),
        torch.optim.AdamW([{"params": rest, "initial_lr": ADAMW_RATE}], lr=ADAMW_RATE, betas=(0.9, 0.95),
                          weight_decay=WEIGHT_DECAY),
    ]


def paper(module: nn.Module, vision: float = 0.1) -> list[torch.optim.Optimizer]:
    """The paper's (table 2): AdamW throughout, the vision tower at a tenth of the rate."""
    seeing, rest = [], []
    for name, parameter in module.named_parameters():
        (seeing if name.startswith("vision.") else rest).append(parameter)
    groups = [{"params": seeing, "initial_lr": vision * ADAMW_RATE}, {"params": rest, "initial_lr": ADAMW_RATE}]
    return [torch.optim.AdamW(groups, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.1)]


def stepped(progress: float) -> float:
    """The paper's second stage: the rate is divided by the root of 10 after half, and after three quarters."""
    return 10 ** (-0.5 * ((progress >= 0.5) + (progress >= 0.75)))


def rate(progress: float) -> float:
    """The fraction of the full learning rate at this progress (0 to 1): a short rise, then half a cosine down."""
    if progress < WARMUP:
        return progress / WARMUP
    fallen = (progress - WARMUP) / (1 - WARMUP)
    return LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * fallen)) / 2


class Learner:
    """What is learned, kept in float32; a copy of it to compute with, in the dtype that is faster; and optimisers.

    An update is often smaller than bfloat16's steps: weights kept in bfloat16 would not move. A module that is divided
    among processes (shard.py) needs no copy, it gathers its weights in the dtype to compute in: for it, say float32.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, optimizers: list[torch.optim.Optimizer] | None = None):
        self.module = module
        self.optimizers = optimizers or fast(module)
        self.working = module if dtype == torch.float32 else copy.deepcopy(module)
        for parameter in self.working.parameters():     # not the gates' biases: steps of 0.001 need float32
            parameter.data = parameter.data.to(dtype)

    def freeze(self, parts: tuple[str, ...]) -> None:
        """These parts stay as they are; no gradient is computed for them, which is most of their cost."""
        for name, parameter in self.working.named_parameters():
            parameter.requires_grad_(not name.startswith(parts))

    def step(self, rate: float) -> float:
        """After a backward pass through `working`: average the team's gradients, step. Returns the gradient's norm."""
        self._fetch_gradients()
        clip = shard.clip if shard.is_divided(self.module) else torch.nn.utils.clip_grad_norm_
        norm = clip(self.module.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
            optimizer.step()
            optimizer.zero_grad()
        return norm.item()

    def _fetch_gradients(self) -> None:
        learning = []
        for own, worked in zip(self.module.parameters(), self.working.parameters(), strict=True):
            grad, worked.grad, own.grad = worked.grad, None, None
            if worked.requires_grad:        # an expert nobody visited has a gradient, too: zero
                own.grad = torch.zeros_like(own) if grad is None else grad.to(own.dtype)
                learning.append(own.grad)
        if not shard.is_divided(self.module):       # there they come as averages
            team.average(learning)

    @torch.no_grad()
    def hand_out(self) -> None:
        """What was learned, to the copy."""
        if self.working is not self.module:
            for own, worked in zip(self.module.state_dict().values(), self.working.state_dict().values(), strict=True):
                worked.copy_(own)

    def state(self) -> dict[str, Tensor]:
        """The optimisers' memory, by the parameter's name and theirs: decoder.norm.weight.exp_avg."""
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        return {f"{names[parameter]}.{key}": value for optimizer in self.optimizers
                for parameter, values in optimizer.state.items() for key, value in values.items()}

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """What `state` returned, whole; of a divided module the own part is taken."""
        parameters = dict(self.module.named_parameters())
        holders = {p: optimizer for optimizer in self.optimizers
                   for group in optimizer.param_groups for p in group["params"]}
        for name, value in saved.items():
            of, key = name.rsplit(".", 1)
            if of in parameters:
                p = parameters[of]
                holders[p].state[p][key] = shard.part_of(value, p).clone() if value.shape == p.shape else value
            elif not (shard.is_divided(self.module) and ".experts." in of):     # those may be another process's
                raise KeyError(f"{name}: the model has no parameter {of}")
