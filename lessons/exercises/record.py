"""Exercises on minivl2/record.py, of lesson 00. Graded by tests/test_record.py."""

import torch

from minivl2 import record
from minivl2.grading.exercise import Exercise, Mistake


def some_probabilities():
    exact = torch.tensor([2.0, -1.0, 3.5, 0.0, 3.0, -4.0])
    rough = torch.arange(300).remainder(37).bfloat16() / 8 + torch.arange(300).bfloat16() / 64
    return [[(int(token), float(p)) for token, p in record.likeliest(logits, k)]
            for logits, k in ((exact, 3), (exact, 1), (exact, 6), (rough, 4))]


SOFTMAX, TOPK = "logits.float().softmax(-1)", ".topk(k)"

EXERCISES = (
    Exercise("record.likeliest", "likeliest", some_probabilities, (
        Mistake("logits as they are", {SOFTMAX: "logits.float()"},
                "these are logits, not probabilities: they may be negative, and add up to nothing. softmax makes "
                "probabilities of them."),
        Mistake("among the k only", {f"{SOFTMAX}.topk(k)": "logits.float().topk(k)",
                                     "probabilities.tolist()": "probabilities.softmax(-1).tolist()"},
                "you cut first and then take the softmax: your k probabilities add up to 1, as if no other token could "
                "be said. Take it over all tokens, then cut."),
        Mistake("each by itself", {SOFTMAX: "logits.float().sigmoid()"},
                "a sigmoid judges each token by itself. Exactly one is said next: the probabilities compete, softmax."),
        Mistake("logarithms", {SOFTMAX: "logits.float().log_softmax(-1)"},
                "these are logarithms of probabilities (all below 0). softmax, not log_softmax."),
        Mistake("the unlikeliest", {TOPK: ".topk(k, largest=False)"},
                "these are the k unlikeliest."),
        Mistake("unlikeliest of them first", {"list(zip(tokens.tolist(), probabilities.tolist(), strict=True))":
                                              "list(zip(tokens.tolist(), probabilities.tolist(), strict=True))[::-1]"},
                "the right tokens, but the likeliest is to come first."),
        Mistake("probability first", {"zip(tokens.tolist(), probabilities.tolist(), strict=True)":
                                      "zip(probabilities.tolist(), tokens.tolist(), strict=True)"},
                "each pair begins with the probability; the token comes first."),
        Mistake("in percent", {"probabilities.tolist()": "(100 * probabilities).tolist()"},
                "these are percent. A probability is between 0 and 1."),
        Mistake("in the logits' own precision", {"logits.float()": "logits"},
                "the softmax is computed in the precision of the logits. In bfloat16, with its three digits, "
                "probabilities do not add up to 1. Use logits.float()."),
        Mistake("one too few", {TOPK: ".topk(max(1, k - 1))"}),
        Mistake("squares", {SOFTMAX: "(logits.float() ** 2 / (logits.float() ** 2).sum())"}),
        Mistake("tensors", {"zip(tokens.tolist(), probabilities.tolist(), strict=True)":
                            "zip(tokens, probabilities, strict=True)"}),
    )),
)
