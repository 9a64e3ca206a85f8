"""From the archives that people download, or any folder of scans, to the data layout that training reads."""

from .recipe import RECIPES, LabelClass, Recipe, make_recipe
from .run import prepare_dataset
from .source import Options
from .summary import format_summary

__all__ = ["RECIPES", "LabelClass", "Options", "Recipe", "format_summary", "make_recipe", "prepare_dataset"]
