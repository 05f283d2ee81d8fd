"""Whether a model has the network of a recipe, however it was trained: what its speed depends on."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from directdet.models.configs import config_of
from directdet.recipes.by_name import get_recipe

# Settings on which the speed of a network depends, apart from its normalisation and the number of classes.
SETTINGS = (
    "backbone",
    "width",
    "masks",
    "pyramid",
    "fpn_channels",
    "box_convs",
    "box_features",
    "mask_convs",
    "mask_channels",
    "test_proposals",
    "extras",
    "size",
    "last_map_3x3",
    "l2_norm",
)


def has_network_of(network: Mapping[str, Any], recipe: str) -> bool:
    """Whether `network`, settings as `models.build.describe_model` returns them, is the network of a recipe.

    Batch normalisation is folded away in a deployed network, so only group normalisation makes a difference.
    """
    wanted = get_recipe(recipe)
    if network.get("detector") != wanted.detector:
        return False
    defaults = {one.name: one.default for one in fields(config_of(wanted.detector))}
    ours, theirs = {**defaults, **network}, {**defaults, **wanted.model}
    same_norm = (ours["norm"] == "gn") == (theirs["norm"] == "gn")
    return same_norm and all(ours[name] == theirs[name] for name in SETTINGS if name in defaults)
