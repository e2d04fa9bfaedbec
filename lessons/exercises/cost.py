"""Exercises on minivl2/cost.py, of lesson 11. Graded by tests/test_cost.py."""

import dataclasses

import small

from minivl2 import Config, cost
from minivl2.grading.exercise import Exercise, Mistake

GROUPED = dataclasses.replace(Config.named("tiny").language, num_key_value_heads=2)


def some_numbers():
    languages = [Config.named("tiny").language, Config.named("small").language, GROUPED,
                 small.language(), small.language(**small.MULTI_HEAD)]
    return [float(cost.cache_numbers(language)) for language in languages]


EXERCISES = (
    Exercise("cost.cache_numbers", "cache or remembers", some_numbers, (
        Mistake("keys only", {"2 * lang.num_key_value_heads": "lang.num_key_value_heads"},
                "multi-head attention remembers a key and a value: you counted one of them."),
        Mistake("heads of queries", {"lang.num_key_value_heads": "lang.num_attention_heads"},
                "you counted the heads of the queries. Queries are not remembered; there may be fewer heads of keys "
                "and values."),
        Mistake("without the rotary key", {" + lang.qk_rope_head_dim": ""},
                "the latent alone is not enough: the rotary part of the key is remembered beside it (lesson 5)."),
        Mistake("the latent twice", {"lang.kv_lora_rank + ": "2 * lang.kv_lora_rank + "},
                "key and value share one latent: it is remembered once."),
        Mistake("a rotary key for each head", {
            "lang.qk_rope_head_dim": "lang.num_attention_heads * lang.qk_rope_head_dim"},
                "the rotary key is shared by all heads: it is remembered once."),
        Mistake("unpacked", {
            "lang.kv_lora_rank + lang.qk_rope_head_dim":
            "lang.num_attention_heads * (lang.qk_nope_head_dim + lang.qk_rope_head_dim + lang.v_head_dim)"},
                "these are the unpacked keys and values. What is remembered is the latent, and they are unpacked when "
                "needed."),
        Mistake("v_head_dim where it is 0", {"lang.head_dim": "lang.v_head_dim"},
                "Tiny's file says v_head_dim 0, and means nothing by it. The width of a head is lang.head_dim."),
        Mistake("all layers", {"return 2 *": "return lang.num_hidden_layers * 2 *",
                               "return lang.kv": "return lang.num_hidden_layers * lang.kv",
                               "lora_rank + lang": "lora_rank + lang.num_hidden_layers * lang"},
                "you counted all layers; the question is for one."),
    )),
)
