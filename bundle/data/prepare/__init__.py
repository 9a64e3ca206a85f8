"""From the archives that people download, or any folder of scans, to the data layout that training reads."""

from .look import is_label_map
from .names import is_label_name
from .plain import holds_scans
from .recipe import RECIPES, LabelClass, Recipe, make_recipe
from .run import prepare_dataset
from .source import Options
from .summary import format_summary

__all__ = [
    "RECIPES",
    "LabelClass",
    "Options",
    "Recipe",
    "format_summary",
    "holds_scans",
    "is_label_map",
    "is_label_name",
    "make_recipe",
    "prepare_dataset",
]
