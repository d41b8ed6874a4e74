"""What came along with this installation: its optional packages, and its recipes. Nothing heavy is imported here.

`extras` says how to add a package that is not there; `shipped` finds the recipes, in a checkout and in a wheel alike.
"""

from .extras import add_extra, require
from .shipped import find_recipe, shipped_recipes

__all__ = ["add_extra", "find_recipe", "require", "shipped_recipes"]
