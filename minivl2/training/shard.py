"""One model divided among several processes, so that each keeps a part of it: for models no single one could hold.

Paper    ZeRO, arXiv:1910.02054, section 5 (dividing weights, gradients, optimiser state); GShard, arXiv:2006.16668,
         section 3 (dividing experts).                                          Tests   tests/test_shard.py

    torchrun --standalone --nproc-per-node 2 train_tiny.py --shard              divide the weights
    torchrun --standalone --nproc-per-node 2 train_tiny.py --shard experts      and leave each expert whole, with one owner

A team without this (team.py) keeps everything as often as it has processes. What is kept of every weight is four numbers:
itself, its gradient, and Adam's two averages (Muon: one). Here each of N processes keeps 1/N of them, and still sees its
own part of every batch. The losses are the same, but for the order in which numbers are added.

    weights     Each process keeps some rows of every matrix. Before a decoder layer or a vision block computes, forward
                and backward, its rows are gathered from all and let go afterwards; its gradients are added up, and
                everybody keeps those of its rows. This is torch's FSDP2 (fully_shard); it works with gloo on CPUs.
                Memory: 1/N of all, plus one layer. What lies outside of them (embeddings, head, projector) is gathered
                for the whole step. Network: (N - 1)/N of all weights, three times a step.
    experts     Each process owns E/N experts of every layer, whole; the rest is divided as above. Tokens travel to their
                experts and come back as answers, backward as gradients.
                Memory: 1/N of all, and the experts of a layer are never together. Network: each visit of a token, four
                times a step. That grows with the batch, what is gathered does not: `minivl2 inspect tiny --train` says
                what either comes to at full size.

What stays whole: each process makes or loads the whole model before it is divided; learning to see comes before it, too;
and to save, the first process gathers everything. Muon gathers the directions of all divided matrices of a shape, and each
process makes all of them orthogonal for the sake of its own rows; whole experts are stepped by their owner alone.
"""

from collections.abc import Iterable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from minivl2.experts import MixtureOfExperts, Routing
from minivl2.model import DeepSeekVL2
from minivl2.training import team

WAYS = ("weights", "experts")


def divide(model: DeepSeekVL2, dtype: torch.dtype, way: str) -> None:
    """Keep this process's part of the model, in float32; it computes in dtype. In place."""
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise RuntimeError(f"dividing a model needs torch 2.13 or newer, this is {torch.__version__}")
    layers = list(model.decoder.layers)
    mixtures = [layer.mlp for layer in layers if isinstance(layer.mlp, MixtureOfExperts)] if way == "experts" else []
    settled = {parameter for mixture in mixtures for parameter in keep_own_experts(mixture)}
    # Not the inputs: a layer's inputs in float32 (the angles of the rotation) are so for a reason.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh("cpu", (team.size(),))
    for part in (*model.vision.blocks, *layers, model):         # the last: all that is in none of the others
        fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=settled)
    register_fsdp_forward_method(model, "loss")
    # FSDP gets ready at its first forward pass, and gradients of what is frozen then would stay in dtype once it learns, and
    # be refused. So it gets ready now, while everything learns, by a pass that computes nothing and comes to no end.
    register_fsdp_forward_method(model, "extra_repr")
    model.extra_repr()
    model.reset_iter_state()
    # An expert that is visited in one process only: the others have to bring a gradient of zero, or all wait for ever.
    model.set_reduce_scatter_unused_params(True)


def keep_own_experts(mixture: MixtureOfExperts) -> list[nn.Parameter]:
    """Let go of all experts but this process's, and send tokens to the others. Returns the weights of the own ones."""
    E = len(mixture.experts)
    own = E // team.size()
    if own * team.size() != E:
        raise RuntimeError(f"{E} experts cannot be shared evenly by {team.size()} processes: start as many as divide {E}")
    for e in range(E):
        if e // own != team.rank():
            mixture.experts[e] = nn.Module()        # an empty place, so that each expert keeps its number and its name
    mixture.routed = partial(travel, mixture)
    parameters = list(mixture.experts.parameters())
    for parameter in parameters:
        # It is visited from everywhere, so its gradient is the sum over the team. What is wanted is the mean.
        parameter.register_hook(lambda grad: grad / team.size())
    return parameters


def travel(mixture: MixtureOfExperts, tokens: Tensor, routing: Routing) -> Tensor:
    """MixtureOfExperts.routed, with experts that live in several processes. (n, D) -> (n, D)"""
    n, K = routing.experts.shape
    order = routing.experts.flatten().argsort(stable=True)          # visits, by expert and hence by owner
    leaving = routing.load.view(team.size(), -1)                    # (N, E/N) how many go to each expert of each owner
    coming = torch.empty_like(leaving)                              # (N, E/N) how many come from each to each own expert
    dist.all_to_all_single(coming, leaving)
    sent, came = leaving.sum(1).tolist(), coming.sum(1).tolist()
    guests = Exchange.apply(tokens[order // K], sent, came)         # by where they come from, then by expert
    answers = Exchange.apply(serve(mixture, guests, coming), came, sent)
    by_visit = torch.empty_like(answers).index_copy(0, order, answers).unflatten(0, (n, K))
    return (by_visit * routing.weights[..., None]).sum(1).type_as(tokens)


def serve(mixture: MixtureOfExperts, guests: Tensor, coming: Tensor) -> Tensor:
    """The own experts' answers. A guest visits one expert: the same task as routing at home, with K = 1."""
    if len(guests) == 0:
        return guests           # still a part of the graph: the others wait for our part of the way back
    N, own = coming.shape
    experts = (team.rank() * own + torch.arange(own)).repeat(N).repeat_interleave(coming.flatten())
    routing = Routing(experts[:, None], guests.new_ones(len(guests), 1), guests.new_empty(len(guests), N * own))
    with torch.autocast("cpu", guests.dtype, enabled=guests.dtype == torch.bfloat16):      # owned weights are float32
        return MixtureOfExperts.routed(mixture, guests, routing)


class Exchange(torch.autograd.Function):
    """Each process sends so many rows to each, in order, and gets so many from each. Gradients go the same way back."""

    @staticmethod
    def forward(ctx, rows: Tensor, sent: list[int], came: list[int]) -> Tensor:
        ctx.back = came, sent
        received = rows.new_empty(sum(came), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), came, sent)
        return received

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return Exchange.apply(gradient, *ctx.back), None, None


# parts and wholes; a tensor that is not divided is its own whole and its own part


def is_divided(thing: nn.Module | Tensor) -> bool:
    return isinstance(thing, FSDPModule | DTensor)


def whole(divided: Tensor) -> Tensor:
    """Gathered from everybody's parts. All must ask for it.

    By a plain message: torch's own full_tensor() waits by an operator that has crashed here, between CPUs, now and then."""
    if not is_divided(divided):
        return divided
    dim = divided.placements[0].dim
    rows, part = divided.shape[dim], divided.to_local().movedim(dim, 0)
    missing = -(-rows // team.size()) - len(part)       # the last processes may have fewer; a message is as long for all
    everybody = team.everybodys(torch.cat((part, part.new_zeros(missing, *part.shape[1:]))))
    return everybody.flatten(0, 1)[:rows].movedim(0, dim).contiguous()


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Divided as `like` is. Nothing is sent: everybody has the whole."""
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None) if is_divided(like) else whole


def own(divided: Tensor) -> Tensor:
    """The numbers that are here."""
    return divided.to_local() if is_divided(divided) else divided


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """torch's clip_grad_norm_, for a model of which each gradient, or part of one, is in one process only."""
    gradients = [own(p.grad) for p in parameters if p.grad is not None]
    norm = team.total(torch.stack([gradient.square().sum() for gradient in gradients]).sum()).sqrt()
    for gradient in gradients:
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1))
    return norm


def collect(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """To the first process everybody's tensors by name, whole; to the others nothing. All must ask."""
    first, gathered, undivided = team.rank() == 0, {}, {}
    for name, tensor in sorted(tensors.items()):        # in the same order everywhere
        if is_divided(tensor):
            complete = whole(tensor)
            if first:
                gathered[name] = complete
        else:
            undivided[name] = tensor
    everybody = [None] * team.size() if first else None
    dist.gather_object(undivided, everybody)
    return gathered | {name: tensor for theirs in everybody or () for name, tensor in theirs.items()}


def collect_model(model: DeepSeekVL2) -> DeepSeekVL2:
    """The whole model, to the first process; to the others one without numbers. All must ask."""
    tensors = collect(model.state_dict())
    with torch.device("meta"):
        complete = DeepSeekVL2(model.config)
    if team.rank() == 0:
        complete.load_state_dict(tensors, assign=True)
    complete.unused = model.unused
    return complete
