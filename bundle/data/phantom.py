"""A generated abdomen: several subjects, MR-like or CT-like, for the demo and the tests.

Anatomy is written down in millimeters in the patient's frame (x to the patient's right, y to the front, z to the head,
zero in the middle of the body at the height of the kidneys' upper halves) as ellipsoids and tubes. A subject varies
their place, size and tilt, bends space smoothly, and ripples every surface. Each structure covers a voxel by the
fraction that lies inside it, so borders show partial volume, most of all across thick slices. The numbers stand in the
tables below; the code only draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..atomic import replacing, write_json

__all__ = ["PHANTOM_LABELS", "make_phantom", "write_phantom"]

PHANTOM_LABELS = {0: "background", 1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}


class Solid(NamedTuple):
    """One ellipsoid (``power`` 2) or tube along its own z axis (``power`` 8), in mm and degrees."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    tilt: tuple[float, float, float] = (0, 0, 0)  # about x, then y, then z
    ripple: float = 1.5  # height of the bumps on the surface, mm
    power: float = 2


class Tissue(NamedTuple):
    """How a tissue looks: mean over subjects, sd between subjects, and sd of the texture inside one."""

    mean: float
    spread: float
    texture: float


# --- anatomy: what is where -----------------------------------------------------------------------------------------
BODY_RADII = (137.0, 104.0)  # half width, half depth
BODY_POWER = (2.1, 2.7)  # 2 is an ellipse, larger is more square; drawn per subject, as all pairs below
SKIN_MM = 2.0
FAT_MM = (7.0, 20.0)  # subcutaneous
FAT_TILT, FAT_RIPPLE, FAT_WAVELENGTH_MM = 0.25, 0.15, 90.0  # back against front, and bumps, as shares
WALL_MM = (8.0, 12.0)  # muscle wall
RIB_PERIOD_MM, RIB_SLOPE, RIB_WIDTH = 30.0, 0.55, 0.35  # spacing, descent to the front, share of the period
RIB_DEPTH_MM, RIB_HALF_MM, MARROW_DEPTH_MM = 4.0, 3.5, 2.0  # outside the cavity, half thickness, under the cortex
STERNUM_GAP_MM = 35.0  # no rib within this of the midline
RIB_ARCH = (-20.0, 0.3, 0.5)  # lowest rib: height at the origin, rise to the side and to the front
DIAPHRAGM_TOP_MM = (74.0, 64.0)  # right, left dome
DIAPHRAGM_BLEND_MM = 12.0  # how softly one side turns into the other
BREATH_SD_MM, DOME_SD_MM = 6.0, 3.0  # of both domes together, of each
DIAPHRAGM_APEX_MM, DIAPHRAGM_RADII, DIAPHRAGM_DROP = (52.0, 8.0), (80.0, 72.0), 32.0
VERTEBRA_PERIOD_MM, DISC_SHARE = 34.0, 0.26

LIVER = Solid((64, 6, 19), (72, 80, 72), (0, -12, 0), 3.0)
LIVER_LEFT_LOBE = Solid((-2, 44, 34), (64, 32, 30), (0, 8, 10), 2.5)
LIVER_CUT = Solid((4, -6, -72), (84, 92, 78), (0, 0, 0), 3.0)  # the hollow underside
LIVER_BED = Solid((42, -62, -26), (46, 42, 64), (0, 0, 0), 2.0)  # of the kidney, behind it
LIVER_BLEND_MM = 8.0  # how softly the lobes merge
KIDNEYS = {2: Solid((66, -40, -22), (27, 25, 51), (-8, 9, 20)), 3: Solid((-66, -39, -18), (27, 25, 52), (-8, -9, -20))}
RENAL_SINUSES = {
    2: Solid((42, -30, -22), (16, 9, 19), (0, 9, 20)),
    3: Solid((-42, -29, -18), (16, 9, 19), (0, -9, -20)),
}
SPLEEN = Solid((-90, -27, 23), (40, 58, 58), (14, 10, -18), 2.0)
SPLEEN_CUT = Solid((-48, -12, 22), (30, 44, 64), (0, 0, -18), 2.0)

ERECTORS = (
    Solid((36, -79, 0), (32, 16, 300), (0, 0, 0), 1.5, 8),
    Solid((-36, -79, 0), (32, 16, 300), (0, 0, 0), 1.5, 8),
)
BACK_MUSCLES = (  # psoas, quadratus lumborum
    Solid((35, -48, -75), (15, 16, 85), (0, 8, 0), 1.0, 4),
    Solid((-35, -48, -75), (15, 16, 85), (0, -8, 0), 1.0, 4),
    Solid((70, -68, -75), (20, 9, 70), (0, 0, 30), 1.0, 4),
    Solid((-70, -68, -75), (20, 9, 70), (0, 0, -30), 1.0, 4),
)
VERTEBRAE = (  # body, arch, spinous process, then the canal and the cord in it
    ("cortical bone", Solid((0, -40, 0), (23, 18, 300), (0, 0, 0), 0.8, 8)),
    ("cortical bone", Solid((0, -64, 0), (17, 11, 300), (0, 0, 0), 1.0, 8)),
    ("cortical bone", Solid((0, -80, 0), (4, 16, 300), (0, 0, 0), 0.8, 8)),
    ("fluid", Solid((0, -64, 0), (10, 8, 300), (0, 0, 0), 0.3, 8)),
    ("muscle", Solid((0, -64, 0), (5, 4, 300), (0, 0, 0), 0.3, 8)),
)
MARROW = Solid((0, -40, 0), (20, 15, 300), (0, 0, 0), 0.8, 8)
HEART = Solid((-18, 34, 98), (62, 48, 40), (0, 12, 25), 1.0)
PANCREAS = Solid((-18, 4, 2), (54, 10, 13), (0, 14, -14), 3.0)
GALLBLADDER = Solid((44, 46, -12), (13, 17, 24), (25, 0, 0))
VESSELS = {
    "aorta": Solid((-9, -14, 0), (9, 9, 300), (2, 1, 0), 0.5, 8),
    "vena cava": Solid((20, -14, 0), (12, 9, 300), (-2, -2, 0), 0.8, 8),
}
# hollow organs: drawn with a wall, contents and, in front, gas
STOMACH = (Solid((-50, 26, 32), (42, 40, 42), (0, 25, 10), 4.0), Solid((-6, 48, -2), (42, 17, 18), (0, -10, 0), 3.0))
DUODENUM = (Solid((34, 8, -18), (14, 13, 34), (0, 0, 0), 3.0),)
COLON = (
    Solid((96, 4, -85), (21, 22, 62), (0, 0, 0), 5.0, 4),
    Solid((-103, -4, -72), (16, 17, 72), (0, 4, 0), 4.0, 4),
    Solid((0, 66, -42), (18, 14, 95), (0, 84, 0), 5.0, 4),
)
NUM_SMALL_BOWEL = 22
SMALL_BOWEL_BOX = ((-82, 66), (0, 58), (-105, -22))
SMALL_BOWEL_RADII_MM = (9.0, 20.0)
BOWEL_WALL_MM = 3.0
GAS_SHARE = {"small": 0.1, "colon": 0.8, "stomach": 0.7}  # of the segments
GAS_LEVEL = (0.1, 0.9)  # height of the fluid level, as a share of the half depth
ORGAN_GAP_MM = 2.0  # fat between organs and the wall or the lungs
RENAL_FAT_MM, LIVER_VESSEL_DEPTH_MM, LUNG_VESSEL_DEPTH_MM = 3.5, 6.0, 3.0

# --- variation between subjects -------------------------------------------------------------------------------------
BODY_SCALE_SD = (0.035, 0.05, 0.05)  # x, y, z
SHIFT_SD_MM = (4.5, 4.5, 7.5)  # of one organ
SIZE_SD = 0.09
TILT_SD = 7.0
BEND_MM, BEND_WAVELENGTH_MM = 4.0, 130.0  # smooth deformation of everything
WHOLE = (slice(None),) * 3  # the box of a whole volume
RIPPLE_WAVELENGTH_MM = 32.0
POSE_SD_DEG = (2.0, 2.0, 3.0)  # the patient in the scanner
SCAN_TILT_SD_DEG = (1.5, 1.5, 1.0)  # the oblique slices
CENTER_SD_MM = (4.0, 4.0, 7.0)  # the field of view around the patient
ORIGIN_SD_MM = 20.0  # the patient in the scanner's coordinates

# --- appearance -----------------------------------------------------------------------------------------------------
# T2-weighted with fat suppression (arbitrary units) and portal-venous CT (HU). Several neighbors look alike on purpose.
TISSUES: dict[str, dict[str, Tissue]] = {
    "mr": {
        "air": Tissue(0, 0, 0),
        "skin": Tissue(260, 40, 20),
        "fat": Tissue(85, 14, 16),
        "muscle": Tissue(135, 18, 20),
        "cortical bone": Tissue(50, 10, 8),
        "bone": Tissue(175, 30, 28),
        "disc": Tissue(260, 70, 20),
        "fluid": Tissue(900, 60, 30),
        "lung": Tissue(25, 6, 14),
        "heart": Tissue(230, 50, 60),
        "liver": Tissue(340, 50, 24),
        "kidney": Tissue(690, 80, 75),
        "renal sinus": Tissue(420, 160, 120),
        "spleen": Tissue(620, 90, 38),
        "pancreas": Tissue(390, 50, 60),
        "aorta": Tissue(300, 90, 20),
        "vena cava": Tissue(330, 90, 20),
        "vessel": Tissue(520, 80, 30),
        "gut wall": Tissue(330, 50, 40),
        "gut": Tissue(480, 260, 110),
        "gas": Tissue(15, 4, 0),
    },
    "ct": {
        "air": Tissue(-1000, 0, 0),
        "skin": Tissue(10, 10, 5),
        "fat": Tissue(-100, 6, 9),
        "muscle": Tissue(58, 6, 10),
        "cortical bone": Tissue(480, 60, 40),
        "bone": Tissue(190, 30, 35),
        "disc": Tissue(85, 10, 8),
        "fluid": Tissue(15, 6, 4),
        "lung": Tissue(-830, 25, 35),
        "heart": Tissue(120, 15, 15),
        "liver": Tissue(104, 12, 5),
        "kidney": Tissue(160, 22, 18),
        "renal sinus": Tissue(-20, 30, 40),
        "spleen": Tissue(118, 12, 4),
        "pancreas": Tissue(92, 12, 16),
        "aorta": Tissue(150, 20, 4),
        "vena cava": Tissue(138, 18, 5),
        "vessel": Tissue(150, 15, 6),
        "gut wall": Tissue(80, 10, 10),
        "gut": Tissue(45, 35, 18),
        "gas": Tissue(-940, 20, 10),
    },
}
TEXTURE_MM = (2.5, 7.0)  # sd of the two smoothings whose mean gives the texture
LIVER_VESSELS = (26.0, 0.2, 0.9)  # wavelength in mm, thickness as a share of the wave, opacity
MESENTERIC_VESSELS = (30.0, 0.15, 0.8)
LUNG_VESSELS = (24.0, 0.15, 0.5)
GAIN_SD = 0.12  # MR: log gain of the whole scan
BIAS, BIAS_WAVELENGTH_MM, COIL_SD_MM = 0.22, 350.0, 150.0  # MR: its smooth part, and the falloff of the coil along z
NOISE_SD = {"mr": (7.0, 15.0), "ct": (10.0, 18.0)}
BLUR_VOXELS = 0.55  # in plane
INTENSITY_RANGE = {"mr": (0, 4095), "ct": (-1024, 3071)}


class _Waves:
    """A smooth random function of position in mm: plane waves, mean 0, sd 1, the same on every grid."""

    def __init__(self, rng: np.random.Generator, wavelength_mm: float, num_waves: int = 5) -> None:
        direction = rng.normal(size=(num_waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wavelength = wavelength_mm * rng.uniform(0.75, 1.5, size=(num_waves, 1))
        self.vectors = (2 * np.pi * direction / wavelength).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, size=num_waves).astype(np.float32)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        x, y, z = points
        total = sum(np.cos(x * a + y * b + z * c + p) for (a, b, c), p in zip(self.vectors, self.phases, strict=True))
        return total * np.float32(np.sqrt(2 / len(self.phases)))


def _rotation(degrees: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _normal(rng: np.random.Generator, sd: float | Sequence[float], size: int | None = None) -> np.ndarray:
    """Draw from a normal distribution of mean 0, cut at two standard deviations."""
    return np.clip(rng.normal(size=np.shape(sd) if size is None else size), -2, 2) * np.asarray(sd)


def _coverage(inside: np.ndarray) -> np.ndarray:
    """Fraction of each voxel where a function is negative, from its value and its slope from voxel to voxel."""
    slope = sum(np.abs(g) for g in np.gradient(inside))
    return np.clip(0.5 - inside / np.maximum(slope, 1e-6), 0, 1)


class _Scene:
    """The picture while it is painted: patient coordinates of every voxel, intensities and labels.

    A shape is a function of position, negative inside and close to the distance to its border in mm. Random numbers of
    the anatomy and of the appearance come from two generators, so that both modalities of a subject share their labels.
    """

    def __init__(
        self,
        points: np.ndarray,  # (3, H, W, D), mm
        anatomy: np.random.Generator,
        appearance: np.random.Generator,
        tissues: dict[str, Tissue],
        spacing_mm: Sequence[float],
    ) -> None:
        self.place(points)
        self.rng, self.look = anatomy, appearance
        self.label = np.zeros(points.shape[1:], dtype=np.uint8)
        self.texture = np.zeros(points.shape[1:], dtype=np.float32)
        # a generator of its own, because the number of draws depends on the grid
        grain = np.random.default_rng(appearance.integers(2**63)).standard_normal(points.shape[1:], dtype=np.float32)
        for sd in TEXTURE_MM:
            smooth = ndimage.gaussian_filter(grain, [sd / s for s in spacing_mm], truncate=3)
            self.texture += smooth / (smooth.std() * np.sqrt(len(TEXTURE_MM)))
        self.tissues = tissues
        self.level = {name: t.mean + float(_normal(appearance, t.spread)) for name, t in tissues.items()}
        self.image = np.full(points.shape[1:], self.level["air"], dtype=np.float32)

    def place(self, points: np.ndarray) -> None:
        """Set the coordinates (3, H, W, D) in which shapes are drawn from now on."""
        self.points = points
        others = [tuple(i for i in range(3) if i != axis) for axis in range(3)]
        self.extremes = [(points[axis].min(axis=rest), points[axis].max(axis=rest)) for axis, rest in enumerate(others)]

    def vary(self, solid: Solid) -> Solid:
        """Move, resize and tilt a solid as this subject has it."""
        center = np.add(solid.center, _normal(self.rng, SHIFT_SD_MM))
        radii = np.multiply(solid.radii, np.exp(_normal(self.rng, SIZE_SD, 3)))
        return solid._replace(
            center=tuple(center), radii=tuple(radii), tilt=tuple(np.add(solid.tilt, _normal(self.rng, TILT_SD, 3)))
        )

    def box(self, solid: Solid, margin_mm: float = 4.0) -> tuple[slice, ...]:
        """Voxel box that surely holds the solid."""
        reach = np.abs(_rotation(solid.tilt)) @ np.asarray(solid.radii) + solid.ripple * 2 + margin_mm
        slices = []
        for axis, (low, high) in enumerate(self.extremes):
            near = np.flatnonzero((high > solid.center[axis] - reach[axis]) & (low < solid.center[axis] + reach[axis]))
            # at least two voxels, or there is no slope
            start = min(int(near[0]), len(low) - 2) if near.size else 0
            slices.append(slice(start, max(int(near[-1]) + 1, start + 2) if near.size else 2))
        return tuple(slices)

    def shape(self, solid: Solid, box: tuple[slice, ...] = WHOLE) -> np.ndarray:
        """Evaluate the function of a solid, with ripples of its own, on the voxels of a box."""
        points = self.points[(slice(None),) + box]
        ripple = _Waves(self.rng, RIPPLE_WAVELENGTH_MM, 4)
        turn = (_rotation(solid.tilt).T / np.asarray(solid.radii)[:, None]).astype(np.float32)
        u, v, w = np.tensordot(turn, points - np.asarray(solid.center, np.float32)[:, None, None, None], axes=1)
        if solid.power == 2:
            radius = np.sqrt(u * u + v * v + w * w)
        else:
            half = solid.power / 2
            radius = ((u * u + v * v) ** half + (w * w) ** half) ** (1 / solid.power)
        return (radius - 1) * min(solid.radii) + ripple(points) * solid.ripple

    def paint(
        self,
        cover: np.ndarray,
        tissue: str,
        box: tuple[slice, ...] = WHOLE,
        label: int | None = 0,
        level: float | None = None,
    ) -> None:
        """Lay a tissue over the picture; ``label`` None keeps the labels below."""
        level = self.level[tissue] if level is None else level
        value = level + self.tissues[tissue].texture * self.texture[box]
        self.image[box] += cover * (value - self.image[box])
        if label is not None:
            self.label[box][cover > 0.5] = label

    def add(self, solid: Solid, tissue: str, label: int = 0) -> None:
        """Draw one solid of one tissue."""
        box = self.box(solid)
        self.paint(_coverage(self.shape(solid, box)), tissue, box, label)

    def strands(
        self, inside: np.ndarray, wavelength_mm: float, thickness: float, opacity: float, box: tuple[slice, ...] = WHOLE
    ) -> None:
        """Draw winding vessels (where two smooth functions vanish together) inside a shape."""
        points = self.points[(slice(None),) + box]
        first, second = _Waves(self.rng, wavelength_mm)(points), _Waves(self.rng, wavelength_mm)(points)
        cover = np.clip(2 - np.hypot(first, second) / thickness, 0, 1) * _coverage(inside)
        self.paint(cover * np.float32(opacity), "vessel", box, label=None)


def _draw_body(scene: _Scene, scale: np.ndarray) -> np.ndarray:
    """Paint skin, fat, wall and ribs; return the cavity as a function (negative inside)."""
    x, y, z = scene.points
    rng = scene.rng
    radius = np.hypot(x, y)
    a, b = (np.asarray(BODY_RADII) * scale[:2]).astype(np.float32)
    power = np.float32(rng.uniform(*BODY_POWER))
    relative = ((np.abs(x) / a) ** power + (np.abs(y) / b) ** power) ** (1 / power)
    depth = radius * (1 / np.maximum(relative, 1e-3) - 1)  # mm below the skin, along the ray from the middle
    fat = np.float32(rng.uniform(*FAT_MM)) * (1 + FAT_TILT * np.float32(rng.uniform(-1, 1)) * y / b)
    fat *= 1 + FAT_RIPPLE * _Waves(rng, FAT_WAVELENGTH_MM, 4)(scene.points)
    wall = fat + np.float32(rng.uniform(*WALL_MM))
    scene.paint(_coverage(-depth), "skin")
    scene.paint(_coverage(SKIN_MM - depth), "fat")
    scene.paint(_coverage(fat - depth), "muscle")
    cavity = wall - depth
    scene.paint(_coverage(cavity), "fat")
    phase = (z + RIB_SLOPE * y) / RIB_PERIOD_MM + rng.uniform()
    along = (np.abs(phase - np.round(phase)) - RIB_WIDTH / 2) * RIB_PERIOD_MM
    across = np.abs(depth - wall + RIB_DEPTH_MM) - RIB_HALF_MM
    arch, to_side, to_front = RIB_ARCH
    below_arch = arch + to_side * np.abs(x) + to_front * y - z
    ribs = np.maximum.reduce([along, across, STERNUM_GAP_MM - np.abs(x), below_arch])
    scene.paint(_coverage(ribs), "cortical bone")
    scene.paint(_coverage(ribs + MARROW_DEPTH_MM), "bone")
    return cavity


def _draw_spine(scene: _Scene) -> None:
    """Paint the vertebral column, with discs between the vertebrae."""
    for tissue, solid in VERTEBRAE:
        scene.add(solid, tissue)
    box = scene.box(MARROW)
    inside = _coverage(scene.shape(MARROW, box))
    phase = scene.points[2][box] / VERTEBRA_PERIOD_MM + scene.rng.uniform()
    scene.paint(inside, "bone", box)
    scene.paint(inside * _coverage(np.abs(phase - np.round(phase)) - DISC_SHARE / 2), "disc", box)


def _diaphragm(scene: _Scene) -> np.ndarray:
    """Height above the diaphragm in mm; positive where the lungs are."""
    x, y, z = scene.points
    breath = _normal(scene.rng, BREATH_SD_MM)
    right, left = (np.float32(top + breath + _normal(scene.rng, DOME_SD_MM)) for top in DIAPHRAGM_TOP_MM)
    apex_x, apex_y = DIAPHRAGM_APEX_MM
    bowl = ((np.abs(x) - apex_x) / DIAPHRAGM_RADII[0]) ** 2 + ((y - apex_y) / DIAPHRAGM_RADII[1]) ** 2
    side = 1 / (1 + np.exp(-x / DIAPHRAGM_BLEND_MM))  # 1 on the right
    return z - (left + (right - left) * side) + DIAPHRAGM_DROP * bowl


def _draw_gut(scene: _Scene, cavity: np.ndarray, below_lungs: np.ndarray) -> None:
    """Paint colon, small bowel, duodenum and stomach: wall, contents, and gas in front."""
    rng, mean, spread = scene.rng, scene.tissues["gut"].mean, scene.tissues["gut"].spread
    low, high = np.transpose(SMALL_BOWEL_BOX)
    loops = []
    for _ in range(NUM_SMALL_BOWEL):
        radii = rng.uniform(*SMALL_BOWEL_RADII_MM, size=3) * (1, 1, 1.4)
        loops.append(Solid(tuple(rng.uniform(low, high)), tuple(radii), tuple(rng.uniform(0, 90, 3)), 3.0))
    colon, stomach = ([scene.vary(solid) for solid in solids] for solids in (COLON, STOMACH))
    room = np.maximum(cavity, below_lungs) + ORGAN_GAP_MM
    for part, solids in (("small", loops), ("colon", colon), ("small", DUODENUM), ("stomach", stomach)):
        for solid in solids:
            filling = mean + float(_normal(scene.look, spread))
            box = scene.box(solid)
            inside = np.maximum(scene.shape(solid, box), room[box])
            scene.paint(_coverage(inside), "gut wall", box)
            scene.paint(_coverage(inside + BOWEL_WALL_MM), "gut", box, level=filling)
            gas_level = solid.center[1] + rng.uniform(*GAS_LEVEL) * solid.radii[1]
            if rng.uniform() < GAS_SHARE[part]:
                air = np.maximum(inside + BOWEL_WALL_MM, gas_level - scene.points[1][box])
                scene.paint(_coverage(air), "gas", box)


def _draw_organs(scene: _Scene, cavity: np.ndarray, below_lungs: np.ndarray) -> None:
    """Paint pancreas, liver, gallbladder, spleen, kidneys and great vessels; the later lies on top."""
    scene.add(scene.vary(PANCREAS), "pancreas")

    limit = np.maximum(cavity, below_lungs) + ORGAN_GAP_MM
    right, left, *cuts = (scene.vary(solid) for solid in (LIVER, LIVER_LEFT_LOBE, LIVER_CUT, LIVER_BED))
    box = tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(scene.box(right), scene.box(left), strict=True)
    )
    lobes = [scene.shape(right, box), scene.shape(left, box)]
    blend = np.float32(LIVER_BLEND_MM)
    nearest = np.minimum(*lobes)
    merged = nearest - blend * np.log1p(np.exp(-np.abs(lobes[0] - lobes[1]) / blend))
    liver = np.maximum.reduce([merged, limit[box], *(-scene.shape(cut, box) for cut in cuts)])
    scene.paint(_coverage(liver), "liver", box, label=1)
    scene.strands(liver + LIVER_VESSEL_DEPTH_MM, *LIVER_VESSELS, box)
    scene.add(scene.vary(GALLBLADDER), "fluid")

    spleen = scene.vary(SPLEEN)
    box = scene.box(spleen)
    inside = np.maximum(scene.shape(spleen, box), -scene.shape(scene.vary(SPLEEN_CUT), box))
    scene.paint(_coverage(np.maximum(inside, limit[box])), "spleen", box, label=4)

    for label, kidney in KIDNEYS.items():
        varied = scene.vary(kidney)
        shift = np.subtract(varied.center, kidney.center)
        sinus = RENAL_SINUSES[label]
        sinus = sinus._replace(center=tuple(np.add(sinus.center, shift)))
        box = scene.box(varied)
        inside = np.maximum(scene.shape(varied, box), limit[box])
        scene.paint(_coverage(inside - RENAL_FAT_MM), "fat", box)  # the capsule of fat that parts it from its neighbors
        scene.paint(_coverage(inside), "kidney", box, label=label)
        scene.paint(_coverage(np.maximum(scene.shape(sinus, box), inside - 4)), "renal sinus", box)
    for tissue, solid in VESSELS.items():
        scene.add(solid, tissue)


def _degrade(scene: _Scene, modality: str) -> np.ndarray:
    """Add what a scanner adds: blur, coil profile and noise; return int16."""
    rng = scene.look
    image = ndimage.gaussian_filter(scene.image, (BLUR_VOXELS, BLUR_VOXELS, 0))
    sd = rng.uniform(*NOISE_SD[modality])
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(sd)
    if modality == "mr":
        coil = BIAS * _Waves(rng, BIAS_WAVELENGTH_MM)(scene.points) - (scene.points[2] / COIL_SD_MM) ** 2 / 2
        image = image * np.exp(coil + _normal(rng, GAIN_SD))
        image = np.hypot(image + noise[0], noise[1])
    else:
        image = image + noise[0]
    return np.clip(np.rint(image), *INTENSITY_RANGE[modality]).astype(np.int16)


def make_phantom(
    subject: int,
    seed: int = 0,
    modality: Literal["mr", "ct"] = "mr",
    shape: Sequence[int] = (160, 160, 24),
    spacing_mm: Sequence[float] = (2.0, 2.0, 7.0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label map and affine of one generated abdominal scan.

    The same arguments give the same scan. Anatomy and affine depend on ``subject`` and ``seed`` alone, so the MR and
    the CT of a subject share their labels, and the anatomy is the same whatever the grid.

    Args:
        subject: number of the patient, 0 or larger.
        seed: number of the family of patients, 0 or larger.
        modality: ``"mr"`` (T2 with fat suppression, arbitrary units from 0) or ``"ct"`` (HU).
        shape: voxels along right, front and head (H, W, D), at least 2 each.
        spacing_mm: voxel size along the same axes in mm.

    Returns:
        image (H, W, D) int16; label (H, W, D) uint8 with the values of `PHANTOM_LABELS`; affine (4, 4) float64 from
        voxels to world mm, right-handed, axes near right, anterior, superior and slightly oblique.

    Raises:
        ValueError: if an argument is outside what is named above.

    Example::

        image, label, affine = make_phantom(subject=1, modality="ct")
        image.shape, np.unique(label)  # (160, 160, 24), [0 1 2 3 4]
    """
    if modality not in TISSUES:
        raise ValueError(f"modality must be one of {sorted(TISSUES)}, got {modality!r}")
    if subject < 0 or seed < 0:
        raise ValueError(f"subject and seed must be 0 or larger, got {subject} and {seed}")
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(f"shape must be three sizes of at least 2 voxels, got {tuple(shape)}")
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm must be three positive sizes, got {tuple(spacing_mm)}")

    anatomy = np.random.default_rng([seed, subject, 0])
    appearance = np.random.default_rng([seed, subject, 1 + sorted(TISSUES).index(modality)])

    # voxel -> world, and world -> patient
    direction = _rotation(_normal(anatomy, SCAN_TILT_SD_DEG))
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(spacing_mm)
    patient_origin = _normal(anatomy, ORIGIN_SD_MM, 3)
    middle = patient_origin + _normal(anatomy, CENTER_SD_MM)
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine = affine.astype(np.float32).astype(np.float64)  # as NIfTI stores it
    scale = np.exp(_normal(anatomy, BODY_SCALE_SD))
    to_patient = _rotation(_normal(anatomy, POSE_SD_DEG)).T
    matrix = to_patient @ affine[:3, :3]
    offset = to_patient @ (affine[:3, 3] - patient_origin)
    i, j, k = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    points = np.stack(
        [
            np.float32(m[0]) * i + np.float32(m[1]) * j + np.float32(m[2]) * k + np.float32(o)
            for m, o in zip(matrix, offset, strict=True)
        ]
    )
    bend = np.stack([_Waves(anatomy, BEND_WAVELENGTH_MM, 3)(points) for _ in range(3)])
    points += np.float32(BEND_MM) * bend

    scene = _Scene(points, anatomy, appearance, TISSUES[modality], spacing_mm)
    cavity = _draw_body(scene, scale)
    scene.place(points / scale.astype(np.float32)[:, None, None, None])  # organs grow with the body
    for muscle in ERECTORS:
        inside = scene.shape(muscle)
        scene.paint(_coverage(np.maximum(inside, cavity)), "muscle")
        cavity = np.maximum(cavity, -inside)
    below_lungs = _diaphragm(scene)
    scene.strands(np.maximum(cavity, below_lungs), *MESENTERIC_VESSELS)
    for muscle in BACK_MUSCLES:
        scene.add(muscle, "muscle")
    _draw_gut(scene, cavity, below_lungs)
    scene.paint(_coverage(np.maximum(cavity, -below_lungs)), "lung")
    scene.strands(np.maximum(cavity, -below_lungs) + LUNG_VESSEL_DEPTH_MM, *LUNG_VESSELS)
    scene.add(scene.vary(HEART), "heart")
    _draw_organs(scene, cavity, below_lungs)
    _draw_spine(scene)
    return _degrade(scene, modality), scene.label, affine


def write_phantom(
    root: str | Path,
    num_subjects: int = 6,
    seed: int = 0,
    modality: Literal["mr", "ct"] = "mr",
    num_test: int = 0,
    shape: Sequence[int] = (160, 160, 24),
    spacing_mm: Sequence[float] = (2.0, 2.0, 7.0),
) -> Path:
    """Folder of generated scans in the Medical Segmentation Decathlon layout.

    Writes ``imagesTr/phantom_01.nii.gz`` and so on, ``labelsTr/`` with the same names, ``dataset.json``, and with
    ``num_test`` above 0 further patients in ``imagesTs/`` and ``labelsTs/``. Files of the same names are overwritten.

    Args:
        root: folder to write to; made if missing.
        num_subjects: patients for training, at least 1.
        seed: see `make_phantom`.
        modality: see `make_phantom`.
        num_test: patients for testing, 0 or more; they are numbered after those for training.
        shape: see `make_phantom`.
        spacing_mm: see `make_phantom`.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: if a number of patients is too small, or `make_phantom` refuses its arguments.
    """
    if num_subjects < 1 or num_test < 0:
        raise ValueError(f"num_subjects must be at least 1 and num_test at least 0, got {num_subjects} and {num_test}")
    root = Path(root)
    pairs: dict[str, list[dict[str, str]]] = {"Tr": [], "Ts": []}
    for subject in range(1, num_subjects + num_test + 1):
        part = "Tr" if subject <= num_subjects else "Ts"
        image, label, affine = make_phantom(subject, seed, modality, shape, spacing_mm)
        pair = {}
        for kind, voxels in (("image", image), ("label", label)):
            path = Path(f"{kind}s{part}") / f"phantom_{subject:02d}.nii.gz"
            nifti = nib.Nifti1Image(voxels, affine)
            nifti.set_qform(affine, code=1)
            nifti.set_sform(affine, code=1)
            nifti.header.set_xyzt_units("mm")
            with replacing(root / path) as temporary:
                nib.save(nifti, temporary)
            pair[kind] = f"./{path.as_posix()}"
        pairs[part].append(pair)
    description = {
        "name": f"abdominal phantom ({modality.upper()})",
        "description": f"generated, not measured; seed {seed}",
        "modality": {"0": "MR" if modality == "mr" else "CT"},
        "labels": {str(value): name for value, name in PHANTOM_LABELS.items()},
        "numTraining": num_subjects,
        "numTest": num_test,
        "training": pairs["Tr"],
        "test": [pair["image"] for pair in pairs["Ts"]],
    }
    write_json(root / "dataset.json", description)
    return root
