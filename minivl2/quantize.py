"""A whole model of packed matrices (packed.py): which of them, with how many bits, and how alike it still is.

Lesson   lessons/11_the_real_weights.ipynb
Tests    tests/test_quantize.py

Packed is every large matrix but these: the input embedding, of which a token needs one row; the gates, which are small, and
a choice is not forgiving; and the matrix that unpacks the latents, which is used in two ways. What reads whole tiles has no
single vectors to hurry for, and keeps 8 bits where the rest has 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minivl2 import experts, vision
from minivl2.batch import Batch
from minivl2.model import DeepSeekVL2
from minivl2.packed import GROUP, ROWS, Packed, Packed4, Packed8, Packed16, layout, onednn


class JoinedMLP(nn.Module):
    """An expert whose two first matrices, which read the same vector, are one: fetched in one go."""

    def __init__(self, mlp: experts.MLP, form: Callable[..., Packed]):
        super().__init__()
        self.gate_up = form([mlp.gate_proj, mlp.up_proj])
        self.down_proj = mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class BentMLP(nn.Module):
    """The vision tower's MLP, whose first layer bends its numbers itself."""

    def __init__(self, mlp: vision.MLP, form: Callable[..., Packed]):
        super().__init__()
        self.fc1, self.fc2 = form([mlp.fc1], gelu=True), mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


def prepare(model: DeepSeekVL2, bits: int) -> dict[str, tuple[Packed, int]]:
    """Put packed layers, still empty, into the places of plain ones. Returns who takes which of the model's matrices."""
    takers: dict[str, tuple[Packed, int]] = {}

    def replace(name: str, new: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)

    def form_of(name: str, *linears: nn.Linear) -> type[Packed] | None:
        rows, columns = sum(each.out_features for each in linears), linears[0].in_features
        if name.endswith("kv_up"):
            return None
        if bits == 16:
            return Packed16
        if bits == 4 and name.startswith("decoder.") and rows % ROWS == 0 and columns % GROUP == 0:
            return Packed4
        return Packed8 if rows % 16 == 0 and columns % 16 == 0 else None        # what the kernel can read

    for name, module in list(model.named_modules()):
        if isinstance(module, experts.MLP) and (form := form_of(name, module.gate_proj, module.up_proj)):
            joined = JoinedMLP(module, form)
            takers |= {f"{name}.gate_proj.weight": (joined.gate_up, 0), f"{name}.up_proj.weight": (joined.gate_up, 1)}
            replace(name, joined)
        elif isinstance(module, vision.MLP) and (form := form_of(name, module.fc1)):
            bent = BentMLP(module, form)
            takers[f"{name}.fc1.weight"] = bent.fc1, 0
            replace(name, bent)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (form := form_of(name, module)):
            packed = form([module])
            takers[f"{name}.weight"] = packed, 0
            replace(name, packed)
    model.bits = bits
    return takers


def stored(module: nn.Module) -> int:
    """Bytes a module's weights take as they are kept."""
    hidden = sum(2 * m.rows * m.columns for m in module.modules() if isinstance(m, Packed16))   # oneDNN's own kind of tensor
    return hidden + sum(t.nbytes for t in module.state_dict().values())


@torch.no_grad()
def agreement(plain: DeepSeekVL2, packed: DeepSeekVL2, batches: Iterable[Batch]) -> dict[str, float]:
    """How alike two models' guesses are wherever a label is to be predicted: the mean Kullback-Leibler divergence of the
    second from the first, in nats, and how often both hold the same token for the likeliest."""
    divergences, same = [], []
    for batch in batches:
        p, q = (model(batch)[:, :-1][batch.learned].float().log_softmax(-1) for model in (plain, packed))
        divergences.append((p.exp() * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    return {"kl": float(torch.cat(divergences).mean()), "same_likeliest": float(torch.cat(same).float().mean())}


def description(bits: int) -> dict:
    """What config.json says of a quantised checkpoint."""
    return {"bits": bits, "group": GROUP, "layout": list(layout())} if bits == 4 else {"bits": bits}


def check(bits: int, dtype: torch.dtype, device: torch.device | str) -> None:
    """Can this machine do it? Raises ValueError, in words."""
    if torch.device(device).type != "cpu":
        raise ValueError(f"packed weights are multiplied by kernels of a CPU; this is {device}. Load them there as they are")
    if bits == 16 and (dtype != torch.bfloat16 or not onednn()):
        raise ValueError("only weights in bfloat16 are packed without rounding, and only where oneDNN, a part of torch, can "
                         f"multiply these (here: {dtype}, oneDNN can: {onednn()}). Load them as they are")
    if bits == 4 and layout() is None:
        raise ValueError("torch cannot multiply weights of 4 bits on this processor; 8 bits (int8) it can")
