"""Exercises on minivl2/training/contrast.py, of lesson 08. Graded by tests/test_contrast.py."""

import small
import torch
from torch.nn import functional as F

from minivl2.grading.exercise import Exercise, Mistake
from minivl2.training import contrast


def a_loss():
    seen, said = small.numbers(2, 5, 3)
    same = torch.eye(5, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    return contrast.pairwise(seen, said, same, torch.tensor(3.0).double(), torch.tensor(-2.0).double())


def softmax_over_captions(seen, said, same, temperature, bias):
    logits = temperature * F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T + bias
    return F.cross_entropy(logits, torch.arange(len(seen)))


EXERCISES = (
    Exercise("training.contrast.pairwise", "judged_alone", a_loss, (
        Mistake("softmax over captions", softmax_over_captions,
                "that is CLIP's loss: a softmax in which captions compete. SigLIP judges every pair alone, yes or no."),
        Mistake("not normalised", {"F.normalize(seen, dim=-1)": "seen", "F.normalize(said, dim=-1)": "said"},
                "the vectors are not made length 1: a picture would be like everything just by being long."),
        Mistake("one side normalised", {"F.normalize(said, dim=-1)": "said"},
                "only one of the two vectors is made length 1."),
        Mistake("normalised over the batch", {"F.normalize(seen, dim=-1)": "F.normalize(seen, dim=0)",
                                              "F.normalize(said, dim=-1)": "F.normalize(said, dim=0)"},
                "you normalise over the batch; each vector by itself has length 1, dim=-1."),
        Mistake("z is 0 or 1", {"2.0 * same - 1": "1.0 * same"},
                "z is 0 for pairs that do not belong together, so they teach nothing. It is -1 there."),
        Mistake("only the diagonal", {"2.0 * same - 1": "2.0 * torch.eye(len(same)) - 1"},
                "you take the diagonal for the pairs that belong together. `same` says it: two pictures may deserve "
                "the same "
                "caption."),
        Mistake("mean over pairs", {".sum() / len(seen)": ".mean()"},
                "you average over all pairs. The sum is divided by the number of pictures only (Algorithm 1): a "
                "larger batch "
                "compares each with more."),
        Mistake("sum", {" / len(seen)": ""}, "the sum is not divided by the number of pictures."),
        Mistake("temperature on the bias", {"temperature * F": "temperature * (F", ".T + bias": ".T + bias)"},
                "the bias is multiplied by the temperature, too: t x.y + b, not t (x.y + b)."),
        Mistake("divided by the temperature", {"temperature * F": "1 / temperature * F"},
                "you divide by the temperature. Here it is a factor, exp of what is learned."),
        Mistake("no minus", {"return -F": "return F"}, "the sign is missing: the loss is -log sigmoid."),
        Mistake("the bias forgotten", {" + bias": ""}),
    )),
)
