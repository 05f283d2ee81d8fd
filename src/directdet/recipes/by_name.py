"""All recipes by name: our own for small datasets, then those of the two papers. Plug-ins add to this dictionary."""

from collections.abc import Callable

from directdet.common.plugins import load_plugins
from directdet.common.settings import SettingError, nearest
from directdet.recipes.direct.recipes import DIRECT_RECIPES
from directdet.recipes.recipe import Recipe
from directdet.recipes.rtmdet import RTMDET_RECIPES
from directdet.recipes.scratchdet import SCRATCHDET_RECIPES
from directdet.recipes.slim import SLIM_RECIPES

RECIPES: dict[str, Callable[[], Recipe]] = {
    **SLIM_RECIPES,
    **RTMDET_RECIPES,
    **DIRECT_RECIPES,
    **SCRATCHDET_RECIPES,
}
BUILT_IN = tuple(RECIPES)


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        SettingError: there is no such recipe; the message suggests the nearest name.
    """
    if name not in RECIPES:
        load_plugins()
    if name not in RECIPES:
        raise SettingError(f"recipe {name!r}: unknown{nearest(name, RECIPES)}; see `directdet recipes`")
    return RECIPES[name]()
