"""Every setting of every dataclass rejects invalid values immediately and names the nearest valid one."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import pytest

from directdet.common.errors import UsageProblem
from directdet.common.settings import (
    Between,
    Count,
    Positive,
    SettingError,
    Share,
    check_fields,
    describe_type,
    field_types,
    nearest,
)
from directdet.models.configs import CONFIGS
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Phase, Recipe

PHASE = Phase("pretrain", "direct", (64, 64))
RECIPE = Recipe("mine", "words", (PHASE,))
BUILT = [(PHASE, "pretrain."), (RECIPE, ""), *((config(num_classes=3), "model.") for config in CONFIGS.values())]


def without_none(kind: Any) -> Any:
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    return parts[0] if len(parts) < len(typing.get_args(kind)) else kind


def rules_of(kind: Any) -> list[Any]:
    """The words or ranges that a type declares; for a tuple, those of its items."""
    kind = without_none(kind)
    if typing.get_origin(kind) is Annotated:
        return [rule for rule in typing.get_args(kind)[1:] if isinstance(rule, Between)]
    if typing.get_origin(kind) is Literal:
        return [kind]
    return [r for part in typing.get_args(kind) for r in rules_of(part)] if typing.get_origin(kind) is tuple else []


def cases() -> list[Any]:
    found = []
    for built, prefix in BUILT:
        for field in fields(built):
            kind = field_types(type(built))[field.name]
            for rule in dict.fromkeys(rules_of(kind)):
                found.append(
                    pytest.param(built, prefix, field.name, kind, rule, id=f"{type(built).__name__}.{field.name}")
                )
    return found


def put(built: Any, name: str, kind: Any, wrong: Any) -> dict[str, Any]:
    """The change that sets a field, or the last item of a tuple, to `wrong`."""
    value = getattr(built, name)
    if typing.get_origin(without_none(kind)) is not tuple:
        return {name: wrong}
    places = typing.get_args(without_none(kind))
    if places[-1] is Ellipsis:
        return {name: (wrong,)}
    return {name: (*(value or (64,) * len(places))[:-1], wrong)}


@pytest.mark.parametrize(("built", "prefix", "name", "kind", "rule"), cases())
def test_what_cannot_be_is_refused_with_the_nearest_that_can(built, prefix, name, kind, rule):
    if not isinstance(rule, Between):
        for word in typing.get_args(rule):
            with pytest.raises(SettingError, match=f"^({prefix}{name}|phase): .*did you mean {word!r}") as caught:
                replace(built, **put(built, name, kind, f"{word}x"))
            assert "\n" not in str(caught.value)
        return
    whole = "int" in str(kind)
    outside = [] if rule.low == -math.inf else [rule.low if rule.above else rule.low - 1]
    outside += [] if rule.high == math.inf else [rule.high + 1]
    assert outside
    for wrong in [int(value) if whole else value for value in outside]:
        with pytest.raises(SettingError, match=f"^{prefix}{name}: ") as caught:
            replace(built, **put(built, name, kind, wrong))
        near = rule.nearest(wrong)
        assert near is None or str(caught.value).endswith(f"the nearest is {near:g}")


@pytest.mark.parametrize("built", [built for built, _ in BUILT], ids=lambda built: type(built).__name__)
def test_every_string_and_number_has_a_rule(built):
    # Free text, or checked where the names are defined.
    free = {"summary", "name", "detector", "backbone", "given"}
    for name, kind in field_types(type(built)).items():
        plain = without_none(kind)
        if name not in free and name in {field.name for field in fields(built)}:
            assert plain is bool or typing.get_origin(plain) is dict or plain == tuple[Phase, ...] or rules_of(kind), (
                name
            )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"norm": "fixd"}, "pretrain.norm: 'fixd' is not one of live, sync, affine, fixed; did you mean 'fixed'?"),
        ({"precision": "bfloat16"}, "did you mean 'bf16'?"),
        ({"resize": "streched"}, "pretrain.resize: 'streched' is not one of direct, edges, warp"),
        ({"optimizer": "adamW"}, "did you mean 'adamw'?"),
        ({"batchsize": 3}, "pretrain.batchsize: unknown setting; did you mean 'batch_size'?"),
        ({"batch_size": 2.5}, "pretrain.batch_size: 2.5 is not a whole number"),
        ({"batch_size": True}, "pretrain.batch_size: True is not a whole number"),
        ({"size": 64}, "pretrain.size: 64 is not 2 whole numbers"),
        ({"scale": (0.8, math.nan)}, "pretrain.scale: nan is not above 0"),
        ({"parts": ("backbone", "neck")}, "pretrain.parts: 'neck' is not one of backbone, fpn, rpn, box, mask"),
    ],
)
def test_a_recipe_changed_from_python(change, says):
    with pytest.raises(SettingError) as caught:
        get_recipe("mask_rcnn_r18_slim").with_phase("pretrain", **change)
    assert says in str(caught.value)


def test_it_is_a_wrong_use_and_a_wrong_value():
    """The command line exits with code 2; and `except ValueError` works, as usual in Python."""
    assert issubclass(SettingError, UsageProblem) and issubclass(SettingError, ValueError)
    with pytest.raises(SettingError, match="phase: 'fine' is not one of pretrain, finetune; did you mean 'finetune'"):
        get_recipe("mask_rcnn_r18_slim").phase("fine")
    with pytest.raises(SettingError, match=r"detector: 'rcn' is not one of .*did you mean 'rcnn'"):
        replace(RECIPE, detector="rcn")
    with pytest.raises(SettingError, match=r"model\.nms: 7 is not between 0 and 1; the nearest is 1"):
        replace(RECIPE, model={"nms": 7})


@dataclass
class Settings:
    share: Share = 0.5
    word: Literal["one", "two"] | None = None
    sizes: tuple[Count, ...] = ()
    pair: tuple[Positive, Positive] = (1.0, 2.0)

    def __post_init__(self) -> None:
        check_fields(self, "")


def test_what_is_allowed_is_taken():
    assert Settings(share=1, word="two", sizes=[1, 2]).sizes == (1, 2)  # integers for numbers, lists for tuples
    assert Settings().word is None and Settings(pair=(1, 0.1)).pair == (1, 0.1)
    for wrong in ({"share": "much"}, {"word": 1}, {"sizes": (0,)}, {"sizes": 3}, {"pair": (1.0,)}, {"pair": None}):
        with pytest.raises(SettingError):
            Settings(**wrong)


def test_types_in_words():
    hints = field_types(Settings)
    assert [describe_type(hints[name]) for name in ("share", "word", "sizes", "pair")] == [
        "a number",
        "one of one, two or none",
        "whole numbers",
        "2 numbers",
    ]
    assert nearest("reznet", ["resnet", "vgg"]) == "; did you mean 'resnet'?" and nearest("qq", ["resnet"]) == ""
