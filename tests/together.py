"""What test_shard.py has one process do, or two that torchrun starts: train_tiny.py several times over, with one start.

Each argument is a command line for train_tiny.py. Every step is logged and saved, the model is smaller than the toy, and
instead of scores, parts-RANK.json tells how many numbers this process has kept. "travel FOLDER" compares experts that live
in two processes with the same in one.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from test_training import small_config

import train_tiny
from minivl2.experts import MixtureOfExperts, Routing
from minivl2.processor import ProcessorConfig
from minivl2.training import ablations, loop, shard, team


def main() -> None:
    loop.LOG_EVERY, loop.SAVE_EVERY, loop.KEPT = 1, 0, 100
    ablations.configurations = lambda variant: (small_config(), ProcessorConfig.of(small_config()))
    original = loop.run_all

    def run_all(trainer: loop.Trainer, run: Path) -> None:
        original(trainer, run)
        kept = {"weights": numbers(trainer.model.state_dict()), "optimizer": numbers(trainer.learner.state())}
        (run / f"parts-{team.rank()}.json").write_text(json.dumps(kept))

    loop.run_all, train_tiny.show = run_all, lambda model, trainer, run, options: {}
    team.join()
    leave, team.join, team.leave = team.leave, lambda: None, lambda: None       # once is enough
    for line in sys.argv[1:]:
        if line.startswith("travel "):
            travel(Path(line.removeprefix("travel ")))
        else:
            sys.argv = ["train_tiny.py", *line.split()]
            train_tiny.main()
    leave()


def numbers(tensors: dict[str, torch.Tensor]) -> int:
    """All that is held in memory for them, also if only a part of it is looked at."""
    return sum(shard.own(t).untyped_storage().nbytes() // t.element_size() for t in tensors.values())


def travel(folder: Path) -> None:
    """The largest differences: of answers, of tokens' gradients, of own experts' gradients."""
    torch.manual_seed(0)
    home = MixtureOfExperts(small_config().language).double()
    away = copy.deepcopy(home)
    shard.keep_own_experts(away)
    E, K, found = len(home.experts), 2, {}
    for case, choices in (("anywhere", E), ("nobody visits the second process", E // 2)):
        everybody = []
        for rank in range(team.size()):     # each has another number of tokens
            tokens = torch.randn(5 + rank, home.gate.cfg.hidden_size, dtype=torch.double)
            chosen = torch.rand(len(tokens), choices).argsort(1)[:, :K]
            everybody.append((tokens, Routing(chosen, torch.rand(len(tokens), K), torch.zeros(len(tokens), E))))
        for module in (home, away):
            module.zero_grad()
        apart = [tokens.clone().requires_grad_() for tokens, _ in everybody]
        answers = [home.routed(tokens, routing) for tokens, (_, routing) in zip(apart, everybody, strict=True)]
        sum(answer.square().sum() for answer in answers).div(team.size()).backward()    # the mean over the team

        tokens, routing = everybody[team.rank()]
        tokens = tokens.clone().requires_grad_()
        answer = away.routed(tokens, routing)
        answer.square().sum().backward()

        found[case] = [
            (answer - answers[team.rank()]).abs().max().item(),
            (tokens.grad / team.size() - apart[team.rank()].grad).abs().max().item(),
            max((p.grad - home.get_parameter(name).grad).abs().max().item()
                for name, p in away.named_parameters() if p.grad is not None) if choices == E or team.rank() == 0 else 0.0,
        ]
    (folder / f"travel-{team.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
