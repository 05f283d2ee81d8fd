"""The recipes by name: ours for small datasets, then the papers'. Code from outside the package adds its own."""

from collections.abc import Callable

from directdet.common.plugins import load_plugins
from directdet.common.settings import SettingError, nearest
from directdet.recipes.direct import PAPER_RECIPES
from directdet.recipes.recipe import Recipe
from directdet.recipes.scratchdet import SCRATCHDET_RECIPES
from directdet.recipes.slim import SLIM_RECIPES

RECIPES: dict[str, Callable[[], Recipe]] = {**SLIM_RECIPES, **PAPER_RECIPES, **SCRATCHDET_RECIPES}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        SettingError: there is none; with the nearest name.
    """
    if name not in RECIPES:
        load_plugins()
    if name not in RECIPES:
        raise SettingError(f"recipe {name!r}: unknown{nearest(name, RECIPES)}; see `directdet recipes`")
    return RECIPES[name]()
