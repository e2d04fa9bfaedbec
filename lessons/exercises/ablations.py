"""Exercises on minivl2/training/ablations.py, of lesson 12. Graded by tests/test_ablations.py."""

import dataclasses
from collections.abc import Mapping

from minivl2.grading.exercise import Exercise, Mistake
from minivl2.training import ablations


@dataclasses.dataclass(frozen=True)
class Wheel:
    size: int = 20
    spokes: int = 32


@dataclasses.dataclass(frozen=True)
class Axle:
    wheel: Wheel = dataclasses.field(default_factory=Wheel)
    long: bool = True


@dataclasses.dataclass(frozen=True)
class Cart:
    front: Axle = dataclasses.field(default_factory=Axle)
    rear: Axle = dataclasses.field(default_factory=lambda: Axle(Wheel(28, 36)))
    name: str = "cart"


def some_changes():
    """What comes back, and whether the original is still what it was."""
    told = []
    for changes in ({"name": "bike"}, {"rear": {"long": False}}, {"rear": {"wheel": {"size": 0}}, "name": ""},
                    {"front": {"wheel": {"spokes": 8}}}, {"nmae": "bike"}, {"rear": {}}):
        cart = Cart()
        try:
            told.append(repr(ablations.changed(cart, changes)))
        except (TypeError, AttributeError):
            told.append("an error")
        told.append(repr(cart))
    return told


def in_place(config, changes):
    for name, value in changes.items():
        if isinstance(value, Mapping):
            in_place(getattr(config, name), value)
        else:
            object.__setattr__(config, name, value)
    return config


def all_into_one(config, changes):
    flat = {}
    for name, value in changes.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return dataclasses.replace(config, **{name: value for name, value in flat.items() if hasattr(config, name)})


NESTED = "changed(getattr(config, name), value)"
EXERCISES = (
    Exercise("training.ablations.changed", "change", some_changes, (
        Mistake("the mapping itself", {f"{NESTED} if isinstance(value, Mapping) else value": "value"},
                "a part is replaced by the mapping itself: config.language would be a dictionary. The part's own fields "
                "are to change."),
        Mistake("in place", in_place,
                "you change the original. Every variant would be built on those before it, and the toy would be none of "
                "them."),
        Mistake("a part made anew", {NESTED: "type(getattr(config, name))(**value)"},
                "a part is made anew: the fields that are not named fall back to the class's defaults, instead of staying "
                "as they were in this configuration."),
        Mistake("one level", {NESTED: "dataclasses.replace(getattr(config, name), **value)"},
                "parts of parts are replaced by a mapping: you go one level deep. Call yourself."),
        Mistake("falsy values skipped", {"in changes.items()": "in changes.items() if value"},
                "changes to False, 0 or an empty string are skipped. Those are what an ablation is made of: "
                "{'use_mla': False}, {'n_shared_experts': 0}."),
        Mistake("unknown names ignored", {"in changes.items()": "in changes.items() if hasattr(config, name)"},
                "a name that does not exist is ignored. A typing error would then compare a model with itself, and find "
                "that the idea is worth nothing."),
        Mistake("a dictionary", {"dataclasses.replace(config, **{": "dict(dataclasses.asdict(config), **{"},
                "a dictionary comes back. It is to be a configuration of the same class."),
        Mistake("names without their place", all_into_one),
        Mistake("the first change only", {"in changes.items()": "in list(changes.items())[:1]"}),
        Mistake("forgets what it asked", {"for name, value in changes.items()":
                                          "for name, value in ((n, changes.pop(n)) for n in list(changes))"}),
    )),
)
