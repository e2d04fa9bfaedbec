"""Exercises on minivl2/names.py, of lesson 11. Graded by tests/test_names.py."""

import re

from minivl2 import names
from minivl2.grading.exercise import Exercise, Mistake

OURS = ("view_separator", "vision.patch_embed.weight", "vision.norm.bias", "vision.blocks.2.attn.qkv.weight",
        *(f"decoder.{name}.weight" for name in ("embed", "head", "norm")),
        *(f"decoder.layers.4.{name}.weight" for name in (
            "attn_norm", "mlp_norm", "attn.kv_norm", "attn.kv_down", "attn.kv_up", "attn.q_down", "mlp.gate",
            "mlp.gate_proj", "mlp.shared.up_proj", "mlp.experts.7.up_proj")), "decoder.layers.4.mlp.gate.bias")


def some_names():
    return [names.published_name(ours) for ours in OURS]


def with_table(**changes):
    """published_name with another table: what is left of a rule is changed to what is right of it; None leaves it "
    "out."""
    table = []
    for pattern, replacement in names.NAMES:
        key = next((k for k in changes if k in pattern), None)
        if key is None or changes[key] is not None:
            table.append((pattern, replacement if key is None else changes[key]))

    def published_name(ours):
        for pattern, replacement in table:
            ours = re.sub(pattern, replacement, ours)
        return ours
    return published_name


def from_bottom_to_top(ours):
    for pattern, replacement in reversed(names.NAMES):
        ours = re.sub(pattern, replacement, ours)
    return ours


def by_replace(ours):
    """str.replace, which knows no beginning: vision.norm and the tower's attn are hit, too."""
    for ours_, published in (("decoder.", "language.model."), ("embed.", "embed_tokens."), ("model.head", "lm_head"),
                             ("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm"),
                             ("attn.", "self_attn."), ("separator", "seperator"), ("shared", "shared_experts"),
                             ("q_down", "q_a_proj"), ("q_norm", "q_a_layernorm"), ("q_up", "q_b_proj"),
                             ("kv_down", "kv_a_proj_with_mqa"), ("kv_norm", "kv_a_layernorm"), ("kv_up", "kv_b_proj"),
                             ("gate.bias", "gate.e_score_correction_bias")):
        ours = ours.replace(ours_, published)
    return ours


UNUSED = "vision.attn_pool."
WANTED = {"a.weight": (2, 3), "b.bias": (4,), "expert.1": (5, 6), "n": (2,), UNUSED + "x": (7,), UNUSED + "y": (7,)}
GOT = {"a.weight": (3, 2), "expert.l": (5, 6), "n": (2, 1), "z": (1,), "y": (1,), UNUSED + "y": (8,), UNUSED + "z": (1,)}


def some_problems():
    return [*names.mismatches(WANTED, GOT), *names.mismatches(WANTED, WANTED)]


EXERCISES = (
    Exercise("names.published_name", "published_name or two_tensors or tiny", some_names, (
        Mistake("separator spelled right", with_table(view_separator="view_separator"),
                "view_separator is misspelled in the published files: view_seperator. What is written there counts."),
        Mistake("the vision tower renamed too", by_replace,
                "your rules reach into the vision tower: names there stay as they are, but for patch_embed. Tie the "
                "rules to the beginning of the name (^decoder\\.)."),
        Mistake("from bottom to top", from_bottom_to_top),
        Mistake("norms not renamed", with_table(kv_norm=None, q_norm=None),
                "the norms inside latent attention keep our names with you: kv_norm is kv_a_layernorm, q_norm "
                "q_a_layernorm."),
        Mistake("bias of the gate", with_table(bias=None),
                "the gate's bias keeps our name with you; published, it is e_score_correction_bias."),
        Mistake("head inside the model", with_table(head="language.model.lm_head."),
                "the head is language.lm_head, beside language.model and not in it."),
        Mistake("shared", with_table(shared=None), "the shared expert is published as shared_experts."),
        Mistake("norms swapped", with_table(attn_norm=r"language.model.\1.post_attention_layernorm.",
                                            mlp_norm=r"language.model.\1.input_layernorm."),
                "the two norms of a layer are swapped: input_layernorm stands before attention, "
                "post_attention_layernorm "
                "before the MLP. Both have the same shape, so no check of shapes would notice."),
        Mistake("latent swapped", with_table(kv_down=".self_attn.kv_b_proj.", kv_up=".self_attn.kv_a_proj_with_mqa."),
                "kv_down and kv_up are swapped: a comes first, and makes the latent."),
        Mistake("embed", with_table(**{r"decoder\.embed": "language.model.embed."}), "the embedding is embed_tokens."),
    )),
    Exercise("names.mismatches", "problem or one_line or pooling or misspelled or missing_ones", some_problems, (
        Mistake("extra ones forgiven", {"problems += [f\"{name}: not a tensor of this model\" for name in extra]": ""},
                "tensors that the model has no place for go unnoticed. Each is a sign that the model is another one."),
        Mistake("missing ones forgiven", {"wanted.keys() - got.keys()": "set()"},
                "missing tensors go unnoticed: they would stay random."),
        Mistake("shapes forgiven", {"got[name] != shape": "False"}, "shapes are not compared."),
        Mistake("as many numbers will do", {"name in got and got[name] != shape":
                                            "name in got and __import__('math').prod(got[name]) != "
                                            "__import__('math').prod(shape)"},
                "you compare how many numbers there are. (2, 3) and (3, 2) have as many, and are two different "
                "matrices."),
        Mistake("as many dimensions will do", {"got[name] != shape": "len(got[name]) != len(shape)"},
                "you compare the number of dimensions, not the shapes."),
        Mistake("the pooling head must be there", {"if not name.startswith(UNUSED):": "if True:"},
                "the pooling head is reported as missing. It is never run: a checkpoint may leave it out."),
        Mistake("the pooling head is too much", {" if not name.startswith(UNUSED))": ")"},
                "tensors of the pooling head are reported as too many. It is never run: any of it may be there."),
        Mistake("wanted and got swapped", {"wanted.keys() - got.keys()": "got.keys() - wanted.keys()",
                                           "extra = sorted(name for name in got.keys() - wanted.keys()":
                                           "extra = sorted(name for name in wanted.keys() - got.keys()"},
                "missing and extra are swapped."),
        Mistake("shapes swapped", {"shape {list(got[name])}, but the configuration asks for {list(shape)}":
                                   "shape {list(shape)}, but the configuration asks for {list(got[name])}"},
                "the two shapes are swapped in the message: first the checkpoint's, then what the configuration asks "
                "for."),
        Mistake("stops at the first", {"return problems": "return problems[:1]"},
                "you report the first problem only. Who mends a checkpoint wants to see them all."),
        Mistake("no hint", {"{hint(name, extra)}": ""}),
        Mistake("a misshapen pooling head forgiven", {
            "name in got and got": "name in got and UNUSED not in name and got"}),
        Mistake("backwards", {"sorted(wanted.keys() - got.keys())": "sorted(wanted.keys() - got.keys(), reverse=True)"}),
    )),
)
