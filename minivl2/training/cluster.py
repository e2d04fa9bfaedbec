"""What training the published sizes costs: memory, bytes over the network, time, on how many machines.

Paper    DeepSeek-VL2, arXiv:2412.10302, tables 1 and 2 and section 3.3.        Tests   tests/test_cluster.py

From the configuration alone, by three counting rules:

    work        every weight a token visits costs 6 operations: 2 forward, 4 backward; attention is counted apart
    memory      16 bytes a weight: itself and its gradient in bfloat16, and in float32 itself and Adam's two averages.
                They are divided among all GPUs. Activations come on top
    network     dividing the weights: each GPU gathers all of them twice a step and gives its gradients away once.
                Dividing the experts instead: the tokens travel to their experts and back, forward and backward
"""

from __future__ import annotations

from dataclasses import dataclass

from minivl2 import cost
from minivl2.config import Config

TOKENS = 2.0e9 + 800e9 + 20e9       # of the three stages; between the sizes they differ by 2 %
SEQUENCE = 4096
GPUS = 8                            # in a machine: NVIDIA A100
PEAK = 312e12                       # operations a second of one A100, in bfloat16 (its data sheet)
VISUAL = 0.5                        # part of all tokens that are visual. An assumption: the paper does not say
BYTES_A_WEIGHT = 16


@dataclass(frozen=True)
class Published:
    machines: int
    days: float
    batch: int          # sequences a step in the second stage, where nearly all of the time goes


PAPER = {"tiny": Published(16, 7, 2304), "small": Published(33, 10, 2304), "base": Published(42, 14, 3360)}


@dataclass(frozen=True)
class Training:
    """The cost on so many machines."""

    operations: float           # of the whole training
    ideal_days: float           # if every GPU ran at its peak all the time
    memory: float               # bytes a GPU, without activations
    gathered: float             # bytes a GPU receives and sends in a step, weights divided
    travelled: float            # bytes of tokens a GPU sends to experts and back in a step, experts divided


def operations_a_token(config: Config) -> float:
    """Forward and backward, averaged over visual tokens and words."""
    lang, parts = config.language, {part.name: part for part in cost.parts(config)}
    eye = parts["vision tower"].activated + parts["projector"].activated / (config.vision.grid / config.tokens_per_side) ** 2
    words = sum(part.activated for part in parts.values()) - parts["vision tower"].activated - parts["projector"].activated
    patches = (config.vision.grid / config.tokens_per_side) ** 2            # seen for one visual token: 3.7
    key = lang.qk_nope_head_dim + lang.qk_rope_head_dim if lang.use_mla else lang.head_dim
    value = lang.v_head_dim if lang.use_mla else lang.head_dim
    # a token looks at half of a sequence on average
    attention = lang.num_hidden_layers * lang.num_attention_heads * (key + value) * SEQUENCE / 2
    return 6 * (words + attention + VISUAL * patches * eye)


def training(config: Config, machines: int, batch: int) -> Training:
    gpus = machines * GPUS
    lang, weights = config.language, sum(part.total for part in cost.parts(config))
    layers = sum(lang.is_moe(i) for i in range(lang.num_hidden_layers))
    operations = TOKENS * operations_a_token(config)
    return Training(
        operations=operations,
        ideal_days=operations / (gpus * PEAK) / 86_400,
        memory=BYTES_A_WEIGHT * weights / gpus,
        gathered=3 * 2 * weights * (gpus - 1) / gpus,
        travelled=4 * 2 * layers * lang.num_experts_per_tok * lang.hidden_size * batch * SEQUENCE / gpus,
    )


def report(name: str, machines: int | None = None) -> str:
    """What `minivl2 inspect NAME --train` prints."""
    config, published = Config.named(name), PAPER[name]
    machines = machines or published.machines
    here, theirs = (training(config, n, published.batch) for n in (machines, published.machines))
    reached = theirs.ideal_days / published.days
    steps = TOKENS / published.batch / SEQUENCE
    return "\n".join([
        f"training DeepSeek-VL2 {name} on {machines} machines of {GPUS} A100, {TOKENS / 1e9:.0f} B tokens",
        f"  work          {here.operations:.1e} operations, {operations_a_token(config) / 1e9:.1f} G a token "
        f"(if {VISUAL:.0%} of the tokens are visual)",
        f"  time          {here.ideal_days / reached:.1f} days, at {reached:.0%} of the peak: what the paper's "
        f"{published.days} days on {published.machines} machines come to",
        f"  steps         {steps:,.0f} of {published.batch:,} sequences of {SEQUENCE:,} tokens",
        f"  memory        {cost.human(here.memory)} a GPU for weights, gradients and Adam, divided among all; "
        f"{cost.human(here.memory * machines * GPUS)} in all",
        f"  network       {cost.human(here.gathered)} a GPU and step, if weights are divided and gathered when needed;",
        f"                {cost.human(here.travelled)} of tokens, if they travel to experts that stay where they are",
    ])
