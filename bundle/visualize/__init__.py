"""Pictures of what goes in, what happens and what comes out, as arrays and figures."""

from .colors import PALETTE, label_colors
from .curves import read_curves
from .episodes import episode_planes
from .figures import (
    curves_figure,
    episode_figure,
    figure_array,
    overlay_figure,
    prototype_figure,
    save_figure,
    scatter_figure,
    superpixel_figure,
    triptych_figure,
)
from .picture import Planes, display_range, labelled_slices, plane_dice, render_slice, to_grey, to_planes
from .prototypes import PrototypeMap, frame_to_picture, prototype_map

__all__ = [
    "PALETTE",
    "Planes",
    "PrototypeMap",
    "curves_figure",
    "display_range",
    "episode_figure",
    "episode_planes",
    "figure_array",
    "frame_to_picture",
    "label_colors",
    "labelled_slices",
    "overlay_figure",
    "plane_dice",
    "prototype_figure",
    "prototype_map",
    "read_curves",
    "render_slice",
    "save_figure",
    "scatter_figure",
    "superpixel_figure",
    "to_grey",
    "to_planes",
    "triptych_figure",
]
