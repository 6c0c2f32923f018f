"""Draw a small road-scene dataset in the official Cityscapes layout.

    python tools/draw_street_scenes.py OUTPUT [--train 160] [--val 24] [--height 256] [--width 512]

Everything stands in metres on a ground plane and is seen through a pinhole camera in a car. One
brush paints each shape into the image and into the label map at once, far things before near ones.
"""

import argparse
import json
import math
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.cityscapes import CLASSES, TRAIN_IDS
from projects.SegFormer.modeling.errors import InputError

LABEL_IDS = {name: TRAIN_IDS.tolist().index(i) for i, name in enumerate(CLASSES)}
LABEL_IDS |= {"ego vehicle": 1, "static": 4, "dynamic": 5, "rail track": 10}  # not evaluated
CITIES = {"train": ("ampelfurt", "brunnhaven", "cobbleton"), "val": ("dellmark", "elmsquare")}
MARKER = "street_scenes.json"
VERSION = 1  # raise it when the pictures change: an older dataset is then drawn again
SUPERSAMPLING = 2  # canvas pixels per image pixel and side
NEAR = 0.8  # metres; points closer to the camera are pulled to this distance

Colour = tuple[float, float, float]  # RGB, 0 to 255
MATERIALS = {
    "glass": (46, 60, 74), "dark": (26, 26, 29), "tail": (214, 30, 28), "head": (250, 246, 214),
    "plate": (232, 230, 216), "stripe": (176, 36, 44), "metal": (112, 116, 120),
    "lamp": (255, 240, 190),
}  # fmt: skip
GROUND = {"road": (92, 92, 96), "sidewalk": (166, 156, 150), "terrain": (132, 150, 72),
          "rail track": (116, 100, 86)}  # fmt: skip
PAINTS = {
    "car": ((178, 34, 38), (32, 62, 128), (226, 228, 230), (52, 54, 58), (150, 156, 162),
            (36, 92, 84), (98, 30, 48), (104, 138, 176), (20, 22, 26)),
    "bus": ((236, 178, 30), (230, 150, 24)), "train": ((236, 226, 200), (226, 220, 210)),
    "truck": ((236, 238, 240), (70, 130, 190), (90, 150, 120)),
    "bicycle": ((0, 160, 170), (30, 150, 220), (226, 60, 150)),
    "motorcycle": ((200, 30, 30), (30, 60, 190), (24, 24, 26)),
    "building": ((170, 104, 82), (206, 186, 152), (186, 178, 168), (214, 200, 118), (162, 150, 134),
                 (206, 160, 132), (150, 92, 76), (224, 218, 204), (158, 170, 178)),
    "vegetation": ((58, 96, 38), (74, 112, 44), (44, 82, 42), (92, 108, 42)),
    "coat": ((40, 44, 60), (168, 40, 52), (60, 86, 150), (222, 214, 202), (90, 60, 110)),
    "vest": ((238, 226, 40), (250, 128, 30), (130, 230, 60)),
    "trousers": ((40, 44, 60), (56, 66, 100), (84, 76, 66)),
    "skin": ((236, 196, 168), (206, 156, 122), (150, 102, 74), (96, 64, 48)),
    "wall": ((150, 140, 126), (134, 130, 128), (166, 148, 124)),
    "fence": ((150, 110, 70), (120, 88, 58), (206, 200, 188)),
}  # fmt: skip
# Brightness noise from pixel to pixel: leaves are rough, the sky is smooth.
ROUGHNESS = {"vegetation": 0.24, "terrain": 0.16, "road": 0.05, "sidewalk": 0.05, "building": 0.05,
             "wall": 0.12, "rail track": 0.18, "fence": 0.06}  # fmt: skip


# Time of day: sky colours, tint of everything lit, direction of the sun (x, y, z).
Mood = namedtuple("Mood", "zenith horizon cloud tint sun lamps_lit", defaults=(False,))
MOODS = (
    Mood((70, 124, 196), (190, 214, 232), (248, 248, 250), (1.06, 1.04, 1.0), (-0.6, 0.7, -0.4)),
    Mood((92, 142, 200), (214, 222, 224), (255, 252, 246), (1.08, 1.03, 0.94), (0.7, 0.6, -0.4)),
    Mood((150, 160, 172), (206, 210, 212), (222, 224, 226), (0.88, 0.9, 0.92), (0, 1, 0)),
    Mood((66, 76, 122), (244, 178, 124), (216, 140, 124), (0.74, 0.66, 0.68), (1, 1, 1), True),
)


class Scene:
    """Two canvases, `image` (h,w,3) uint8 RGB and `labels` (h,w) uint8, and the camera on them."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height * SUPERSAMPLING, width * SUPERSAMPLING
        self.image = np.zeros((self.height, self.width, 3), np.uint8)
        self.labels = np.full((self.height, self.width), LABEL_IDS["sky"], np.uint8)
        self.mood = MOODS[rng.choice(len(MOODS), p=(0.32, 0.28, 0.22, 0.18))]
        self.focal = self.width * rng.uniform(0.72, 0.84)
        self.centre = self.width * rng.uniform(0.44, 0.56)
        self.horizon = self.height * rng.uniform(0.4, 0.46)
        self.eye = rng.uniform(1.45, 1.75)  # metres above the road
        self.curve = rng.uniform(-0.0016, 0.0016)  # the road bends sideways by curve * z**2 metres
        self.visibility = rng.uniform(120, 260)  # metres until haze hides two thirds
        self.crossing = rng.uniform(15, 24)  # metres to the crosswalk; a side street 4 metres on
        self.actors = []  # (distance, painter without arguments)

    def place(self, z: float, painter: Callable, *arguments) -> None:
        """Have `painter(scene, *arguments)` called when all that is farther than z is painted."""
        self.actors.append((z, partial(painter, self, *arguments)))

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (...,3), x right, y up, z ahead in metres, to canvas pixels (...,2)."""
        z = np.maximum(points[..., 2], NEAR)
        pixels = np.empty((*z.shape, 2), np.int32)
        pixels[..., 0] = self.centre + self.focal * (points[..., 0] / z + self.curve * z)
        pixels[..., 1] = self.horizon + self.focal * (self.eye - points[..., 1]) / z
        return pixels

    def tone(self, colour: Colour, light: float, z: float, glow: bool = False) -> list[float]:
        """The colour as seen z metres away; what glows is not dimmed by the time of day."""
        clear = math.exp(-z / self.visibility)
        clear, tint = (0.7 + 0.3 * clear, (1, 1, 1)) if glow else (clear, self.mood.tint)
        light = clear if glow else clear * light
        haze = [(1 - clear) * air for air in self.mood.horizon]
        return [min(c * t * light + h, 255.0) for c, t, h in zip(colour, tint, haze, strict=True)]

    def paint(self, name: str, amount: float = 14) -> Colour:
        """One of the paints of that name, slightly varied."""
        colour = PAINTS[name][self.rng.integers(len(PAINTS[name]))]
        shift = self.rng.uniform(-amount, amount, 4)
        return np.minimum(np.maximum(colour + shift[0] + shift[1:] / 3, 0), 255)


class Brush:
    """Paints one object of one class that stands at (x, z), turned by `yaw` about the vertical.

    Its own metres are (right, up, forward); with yaw 0 the object is seen from behind, a positive
    yaw turns it to the right. A colour of None paints the label alone: a wheel or a fence is
    see-through in the image and solid in a Cityscapes polygon.
    """

    def __init__(self, scene: Scene, name: str, x=0.0, z=0.0, yaw=0.0) -> None:
        self.scene, self.label = scene, LABEL_IDS[name]
        self.origin = np.array([x, 0.0, z])
        cos, sin = math.cos(yaw), math.sin(yaw)
        # (right, up, forward) @ turn + origin is in the world
        self.turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        self.sun = self.turn @ scene.mood.sun / np.linalg.norm(scene.mood.sun)
        self.eye = self.turn @ (np.array([-scene.curve * z * z, scene.eye, 0]) - self.origin)

    def light(self, normal) -> float:
        """Brightness of a surface with this outward normal: 0.72 in shade to 1.12 in the sun."""
        cosine = np.dot(normal, self.sun) / math.sqrt(np.dot(normal, normal))
        return 0.72 + 0.4 * max(0.0, float(cosine))

    def face(self, points, colour: Colour | None, light: float = 1.0, glow: bool = False) -> None:
        """Fill a polygon (N,3), or several of one colour (M,N,3)."""
        world = np.asarray(points, np.float64) @ self.turn + self.origin
        polygons = list(self.scene.project(world if world.ndim == 3 else world[None]))
        cv2.fillPoly(self.scene.labels, polygons, self.label)
        if colour is not None:
            z = max(world[..., 2].sum() / world[..., 2].size, NEAR)
            cv2.fillPoly(self.scene.image, polygons, self.scene.tone(colour, light, z, glow))

    def figure(self, parts, colours: dict[str, Colour], stretch=(1.0, 1.0, 1.0)) -> None:
        """Draw round-ended lines listed as (metres thick, material, *path)."""
        points = np.array([point for part in parts for point in part[2:]], np.float64) * stretch
        world = points @ self.turn + self.origin
        pixels, z = self.scene.project(world), max(world[:, 2].sum() / len(world), NEAR)
        for thickness, material, *path in parts:
            line, pixels = [pixels[: len(path)]], pixels[len(path) :]
            width = max(1, round(self.scene.focal * thickness / z))
            tone = self.scene.tone(colours[material], 1.0, z, material == "lamp")
            cv2.polylines(self.scene.labels, line, False, self.label, width)
            cv2.polylines(self.scene.image, line, False, tone, width)

    def limb(self, path, thickness: float, colour: Colour) -> None:
        """Draw a single line of a figure."""
        self.figure(((thickness, "all", *path),), {"all": colour})

    def prism(self, outline, colours: dict[str, Colour]) -> None:
        """Paint a solid from its side view.

        `outline` lists (forward, up, half width, material) from the rear bottom over the top to the
        front bottom. A material is that of the surface up to the next corner; the first one is also
        that of the two sides.
        """
        surfaces = []
        for (f0, u0, w0, material), (f1, u1, w1, _) in pairwise(outline):
            normal = (0.0, f1 - f0, u0 - u1)
            towards_eye = self.eye - (0.0, (u0 + u1) / 2, (f0 + f1) / 2)
            if np.dot(normal, towards_eye) > 0:
                quad = [(-w0, u0, f0), (w0, u0, f0), (w1, u1, f1), (-w1, u1, f1)]
                surfaces.append((np.linalg.norm(towards_eye), quad, material, normal))
        for side in (-1, 1):
            if side * self.eye[0] > max(corner[2] for corner in outline):
                wall = [(side * w, u, f) for f, u, w, _ in outline]
                surfaces.append((0.0, wall, outline[0][3], (side, 0.2, 0.0)))
        for _, points, material, normal in sorted(surfaces, key=lambda surface: -surface[0]):
            self.face(points, colours[material], self.light(normal))


def circle(radius: float, count: int = 14, start: float = 0.0) -> np.ndarray:
    """Corners (count,2) of a regular polygon."""
    angle = start + np.arange(count) * 2 * np.pi / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def shadow(scene: Scene, ground: str, x: float, z: float, yaw=0.0, wide=0.42, long=0.42) -> None:
    spot = np.insert(circle(1.12, 8, np.pi / 8) * (wide, long), 1, 0, axis=1)
    Brush(scene, ground, x, z, yaw).face(spot, np.multiply(GROUND[ground], 0.5))


def _car(rear: float, screen: float, hood: float, roof: float) -> tuple:
    """A car from where the rear window, the windscreen and the bonnet start, and its height."""
    body = ((-2.1, 0.24, 0.86, "body"), (-2.1, 0.82, 0.88, "body"), (-1.95, 0.96, 0.84, "body"),
            (hood, 0.96, 0.84, "body"), (2.0, 0.76, 0.8, "body"),
            (2.1, 0.24, 0.8, "body"))  # fmt: skip
    cabin = ((rear, 0.95, 0.83, "glass"), (rear + 0.38, roof, 0.64, "body"),
             (screen, roof, 0.64, "glass"), (hood, 0.95, 0.83, "glass"))  # fmt: skip
    return 0.86, 2.1, (body, cabin), (), (-1.3, 1.35)


def _coach(wide: float, long: float, high: float, lean: float, *panels: tuple) -> tuple:
    """A long box with a row of windows; its ends lean in by `lean` metres."""
    top = long - lean
    body = ((-long, 0.35, wide, "body"), (-long, 1.3, wide, "glass"),
            (-top, high - 0.45, wide, "body"), (0.3 - top, high, wide - 0.2, "body"),
            (top - 0.3, high, wide - 0.2, "body"), (top, high - 0.45, wide, "glass"),
            (long, 1.3, wide, "body"), (long, 0.35, wide, "body"))  # fmt: skip
    windows = (0, "glass", 0.3 - top, top - 0.3, 1.35, high - 0.6, round(long * 1.2))
    return wide, long, (body,), (windows, *panels), (0.4 - long * 0.6, long * 0.6)


# Half width, half length, outlines, panels, wheels (forward). A panel is (plane, material, from,
# to, lowest, highest, how many): plane 0 is both sides, from and to forward; -1 is the rear, 1 the
# front, from and to in half widths from the middle, mirrored.
VEHICLES = {
    "car": (_car(-2.0, 0.25, 1.05, 1.44), _car(-1.5, 0.2, 1.0, 1.42), _car(-2.1, 0.5, 1.2, 1.72)),
    "bus": (_coach(1.28, 5.4, 3.15, 0.1, (1, "dark", 0, 0.7, 2.75, 3.0, 1)),),
    "train": (_coach(1.35, 11.0, 3.5, 0.5, (0, "stripe", -10.9, 10.9, 0.55, 1.2, 1),
                     (0, "dark", -0.2, 0.2, 0.4, 3.2, 1), (-1, "stripe", 0, 1, 0.9, 1.25, 1),
                     (1, "stripe", 0, 1, 0.9, 1.25, 1)),),
    "truck": ((1.28, 4.0, (
        ((-4.0, 0.7, 1.28, "body"), (-4.0, 3.55, 1.28, "body"), (1.9, 3.55, 1.28, "body"),
         (1.95, 2.75, 1.22, "cab"), (3.6, 2.75, 1.16, "glass"), (3.95, 1.6, 1.2, "cab"),
         (4.0, 0.5, 1.2, "cab")),), (
        (0, "cab", 1.95, 4.0, 0.5, 2.7, 1), (0, "glass", 2.5, 3.6, 1.6, 2.4, 1),
        (0, "dark", -4.0, 1.9, 0.45, 0.72, 1), (0, "stripe", -3.2, 1.2, 1.9, 2.3, 1),
        (-1, "metal", 0, 0.03, 0.8, 3.4, 1), (-1, "metal", 0.9, 0.94, 0.8, 3.4, 1),
        (-1, "metal", 0.4, 0.44, 0.8, 3.4, 1), (-1, "dark", 0, 0.98, 0.3, 0.72, 1)), (-2.9, 2.9)),),
}  # fmt: skip
ENDS = (  # panels of every vehicle: lamps, bumper, plate, tyres
    (-1, "dark", 0, 0.95, 0.26, 0.42, 1), (-1, "tail", 0.64, 0.98, 0.6, 0.85, 1),
    (-1, "plate", 0, 0.3, 0.5, 0.64, 1), (-1, "dark", 0.64, 0.92, 0, 0.3, 1),
    (1, "dark", 0, 0.5, 0.4, 0.68, 1), (1, "head", 0.54, 0.9, 0.56, 0.76, 1),
    (1, "plate", 0, 0.28, 0.32, 0.46, 1), (1, "dark", 0.64, 0.92, 0, 0.3, 1),
)  # fmt: skip


def vehicle(scene: Scene, name: str, x: float, z: float, yaw: float = 0.0) -> None:
    models = VEHICLES[name]
    wide, long, outlines, panels, wheels = models[scene.rng.integers(len(models))]
    colours = dict(MATERIALS, body=scene.paint(name, 8), cab=scene.paint("car", 8))
    shadow(scene, "rail track" if name == "train" else "road", x, z, yaw, wide * 1.2, long * 1.1)
    brush = Brush(scene, name, x, z, yaw)
    for outline in outlines:
        brush.prism(outline, colours)
    right, _, forward = brush.eye
    side = np.sign(right) * (wide + 0.01)
    for plane, material, start, stop, low, high, count in (*panels, *ENDS):
        if plane == 0 and abs(right) > wide:
            step, gap = (stop - start) / count, 0.09 * (count > 1)
            spans = [(start + i * step + gap, start + (i + 1) * step - gap) for i in range(count)]
            quads = [((side, low, a), (side, high, a), (side, high, b), (side, low, b))
                     for a, b in spans]  # fmt: skip
            brush.face(quads, colours[material], brush.light((side, 0.2, 0)))
        elif plane and plane * forward > long:
            end, lit = plane * (long + 0.02), material in ("tail", "head") and scene.mood.lamps_lit
            corners = ((start, low), (start, high), (stop, high), (stop, low))
            quads = [[(m * wide * r, u, end) for r, u in corners] for m in (-1, 1)]
            brush.face(quads, colours[material], glow=lit)
    radius = 0.33 if name == "car" else 0.48
    for wheel in wheels if abs(right) > wide else ():
        for size, material in ((radius, "dark"), (radius * 0.55, "metal")):
            rim = circle(size) + (wheel, radius)
            brush.face([(side, u, f) for f, u in rim], colours[material])


# Figures: limbs as (thickness, material, *path).
PERSON = (
    (0.19, "trousers", (-0.1, 0.06, -0.26), (-0.1, 0.45, -0.12), (-0.08, 0.9, 0)),
    (0.19, "trousers", (0.1, 0.06, 0.22), (0.1, 0.45, 0.16), (0.08, 0.9, 0)),
    (0.12, "dark", (-0.1, 0.06, -0.24), (-0.1, 0.05, -0.1)),
    (0.12, "dark", (0.1, 0.06, 0.24), (0.1, 0.05, 0.38)),
    (0.14, "sleeve", (-0.24, 1.4, 0), (-0.3, 1.1, 0.1), (-0.26, 0.88, 0.26)),
    (0.14, "sleeve", (0.24, 1.4, 0), (0.3, 1.1, -0.1), (0.26, 0.88, -0.18)),
    (0.32, "coat", (-0.07, 0.98, 0), (-0.08, 1.32, 0), (0.08, 1.32, 0), (0.07, 0.98, 0)),
    (0.13, "skin", (0, 1.42, 0), (0, 1.56, 0.02)), (0.24, "skin", (0, 1.64, 0.03), (0, 1.7, 0.03)),
    (0.25, "hair", (0, 1.76, -0.03), (0, 1.76, -0.02)),
)  # fmt: skip
RIDER = (
    (0.18, "trousers", (-0.1, 0.95, -0.2), (-0.16, 0.72, 0.2), (-0.14, 0.42, 0)),
    (0.18, "trousers", (0.1, 0.95, -0.2), (0.16, 0.56, 0.2), (0.14, 0.2, 0)),
    (0.14, "vest", (-0.2, 1.42, 0.08), (-0.3, 1.15, 0.2), (-0.28, 1.05, 0.36)),
    (0.14, "vest", (0.2, 1.42, 0.08), (0.3, 1.15, 0.2), (0.28, 1.05, 0.36)),
    (0.42, "vest", (0, 0.98, -0.2), (0, 1.38, 0)), (0.13, "skin", (0, 1.5, 0.1), (0, 1.6, 0.1)),
    (0.25, "skin", (0, 1.65, 0.1), (0, 1.68, 0.1)), (0.31, "helmet", (0, 1.75, 0.1), (0, 1.76, 0)),
)  # fmt: skip
TWO_WHEELERS = {  # wheel radius, half the distance of the axles, tyre, frame
    "bicycle": (0.36, 0.56, 0.08, (
        (0.09, "frame", (0, 0.36, -0.56), (0, 0.85, -0.2), (0, 0.8, 0.36), (0, 0.36, 0.56)),
        (0.09, "frame", (0, 0.36, -0.56), (0, 0.34, 0), (0, 0.8, 0.36)),
        (0.09, "frame", (0, 0.34, 0), (0, 0.9, -0.2)),
        (0.1, "dark", (0, 0.93, -0.3), (0, 0.93, -0.1)),
        (0.07, "dark", (-0.3, 1.0, 0.36), (0.3, 1.0, 0.36)))),
    "motorcycle": (0.33, 0.74, 0.18, (
        (0.17, "frame", (0, 0.34, -0.74), (0, 0.75, -0.2), (0, 0.8, 0.4), (0, 0.34, 0.74)),
        (0.4, "metal", (0, 0.5, -0.28), (0, 0.5, 0.3)),
        (0.34, "frame", (0, 0.8, 0), (0, 0.84, 0.4)),
        (0.22, "dark", (0, 0.76, -0.8), (0, 0.76, -0.15)),
        (0.2, "tail", (0, 0.7, -0.9), (0, 0.72, -0.9)),
        (0.08, "dark", (-0.36, 1.02, 0.36), (0.36, 1.02, 0.36)))),
}  # fmt: skip


def clothes(scene: Scene) -> dict[str, Colour]:
    paints = {name: scene.paint(name) for name in ("coat", "trousers", "skin", "vest")}
    hair, sleeve = scene.paint("trousers", 30), np.multiply(paints["coat"], 0.8)
    return MATERIALS | paints | {"hair": hair, "sleeve": sleeve}


def person(scene: Scene, x: float, z: float, side: int, ground: str = "sidewalk") -> None:
    """A walker, along the street or across it."""
    yaw = np.pi / 2 * scene.rng.integers(4) + scene.rng.uniform(-0.5, 0.5)
    size, stride = scene.rng.uniform((0.92, 0.5), (1.08, 1.3))
    shadow(scene, ground, x, z)
    brush = Brush(scene, "person", x, z, yaw)
    brush.figure(PERSON, clothes(scene), (size, size, stride))


def two_wheeler(scene: Scene, name: str, x: float, z: float, yaw: float, ridden=True) -> None:
    """A bicycle or a motorcycle, alone or with its rider, who is a class of its own."""
    radius, reach, tyre, frame = TWO_WHEELERS[name]
    colours = clothes(scene) | {"frame": scene.paint(name), "helmet": scene.paint(name)}
    shadow(scene, "road" if ridden else "sidewalk", x, z, yaw, 0.3, 1.0)
    brush = Brush(scene, name, x, z, yaw)
    for axle in (-reach, reach):
        rim = [(0, radius + u, axle + f) for f, u in circle(radius)]
        brush.face(rim, None)
        brush.limb([*rim, rim[0]], tyre, MATERIALS["dark"])
    brush.figure(frame, colours)
    if ridden:
        Brush(scene, "rider", x, z, yaw).figure(RIDER, colours)


def lamp(scene: Scene, x: float, z: float, side: int) -> None:
    shaft = (0.2, "metal", (0, 0, 0), (0, 5.6, 0), (-side * 0.5, 6.1, 0), (-side * 1.8, 6.2, 0))
    glass = "lamp" if scene.mood.lamps_lit else "head"
    head = (0.26, glass, (-side * 1.5, 6.15, 0), (-side * 2, 6.15, 0))
    Brush(scene, "pole", x, z).figure((shaft, head), MATERIALS)


def traffic_light(scene: Scene, x: float, z: float, side: int) -> None:
    reach, lit = -side * scene.rng.choice((0.0, 2.4)), scene.rng.integers(3)
    arm = ((0, 0, 0), (0, 4.4, 0), (reach, 4.5, 0))
    Brush(scene, "pole", x, z).limb(arm, 0.2, MATERIALS["metal"])
    brush = Brush(scene, "traffic light", x, z)
    for right, base in ((0.0, 2.4), (reach, 3.9))[: 2 if reach else 1]:
        box = ((-0.4, 0), (-0.4, 1.9), (0.4, 1.9), (0.4, 0))
        brush.face([(right + r, base + u, -0.1) for r, u in box], (30, 32, 30))
        for index, colour in enumerate(((60, 245, 150), (255, 196, 40), (255, 50, 40))):
            lens = np.insert(circle(0.25) + (right, base + 0.37 + 0.58 * index), 2, -0.2, axis=1)
            brush.face(lens, colour, 0.3, glow=index == lit)


SIGNS = (  # corners, angle of the first one, colours from the rim inwards
    (16, 0.0, ((206, 24, 32), (246, 244, 240), (30, 34, 40))),
    (3, np.pi / 2, ((206, 24, 32), (250, 246, 236), (30, 34, 40))),
    (8, np.pi / 8, ((246, 240, 240), (206, 24, 32), (246, 240, 240))),
    (4, 0.0, ((246, 244, 236), (250, 200, 30), (250, 210, 60))),
    (4, np.pi / 4, ((240, 244, 250), (22, 84, 190), (240, 244, 250))),
)


def sign(scene: Scene, x: float, z: float, side: int) -> None:
    top = scene.rng.uniform(2.3, 2.9)
    Brush(scene, "pole", x, z).limb(((0, 0, 0), (0, top, 0)), 0.16, MATERIALS["metal"])
    corners, start, colours = SIGNS[scene.rng.integers(len(SIGNS))]
    for colour, radius in zip(colours, (0.58, 0.44, 0.16), strict=True):
        plate = np.insert(circle(radius, corners, start) + (0, top), 2, -0.1, axis=1)
        Brush(scene, "traffic sign", x, z).face(plate, colour)


def leaves(scene: Scene, x: float, z: float, low: float, high: float) -> None:
    """A bush, or the crown of a tree: overlapping discs, darker below."""
    rng, span, green = scene.rng, high - low, scene.paint("vegetation")
    up = np.sort(rng.uniform(0.12, 0.9, 26 if z < 40 else 12))
    across = rng.uniform(-0.9, 0.9, len(up)) * np.sqrt(up * (1 - up))
    points = np.stack([x + span * across, low + span * up, np.full(len(up), z)], axis=1)
    radii = span * rng.uniform(0.09, 0.17, len(up)) * scene.focal / max(z, NEAR)
    lights = 0.62 + 0.6 * up + rng.uniform(-0.08, 0.08, len(up))
    for at, radius, light in zip(scene.project(points).tolist(), radii, lights, strict=True):
        cv2.circle(scene.labels, at, int(radius) + 1, LABEL_IDS["vegetation"], -1)
        cv2.circle(scene.image, at, int(radius) + 1, scene.tone(green, light, z), -1)


def tree(scene: Scene, x: float, z: float, side: int) -> None:
    high = scene.rng.uniform(4.5, 8.5)
    trunk = ((0, 0, 0), (0.1, high * 0.5, 0))
    Brush(scene, "vegetation", x, z).limb(trunk, 0.32, (84, 66, 50))
    leaves(scene, x, z, 0.3 * high, high)


def parked_bicycle(scene: Scene, x: float, z: float, side: int) -> None:
    two_wheeler(scene, "bicycle", x, z, scene.rng.uniform(0.7, 1.6) * side, ridden=False)


def bin_or_trolley(scene: Scene, x: float, z: float, side: int) -> None:
    """Void in the evaluation."""
    name, colour = (("static", (40, 84, 60)), ("dynamic", (176, 120, 60)))[scene.rng.integers(2)]
    box = (
        (-0.3, 0, 0.3, "body"),
        (-0.3, 1, 0.34, "lid"),
        (0.3, 1, 0.34, "body"),
        (0.3, 0, 0.3, ""),
    )
    Brush(scene, name, x, z).prism(box, {"body": colour, "lid": np.multiply(colour, 0.6)})


FURNITURE = (  # painter, metres from the edge of the sidewalk, metres from one to the next
    (tree, (-0.2, 0.2), (9, 22)), (lamp, (0.3, 0.4), (13, 24)), (sign, (0.3, 0.5), (8, 18)),
    (traffic_light, (0.2, 0.4), (10, 24)), (person, (0.7, 2.4), (3, 10)),
    (parked_bicycle, (1.4, 2.2), (8, 30)), (bin_or_trolley, (1.8, 2.4), (12, 40)),
)  # fmt: skip


def facade(scene: Scene, start, stop, floors: int, wall: Colour, light: float) -> None:
    """A house front between two points (x, z) on the ground: shops, rows of windows, a cornice."""
    brush, rng, high = Brush(scene, "building"), scene.rng, 3.0 * floors + 0.8
    trim, awning = np.add(wall, 26) if sum(wall) < 500 else np.add(wall, -60), scene.paint("car")
    (x, z), (across, along) = start, np.subtract(stop, start)
    bays = max(2, round(np.hypot(across, along) / 3))

    def panels(inset: float, *spans: tuple[float, float]) -> np.ndarray:
        """Quads (bays * spans,4,3): a strip of every bay, from the lowest to the highest metre."""
        t = (np.arange(bays)[:, None, None] + [inset, inset, 1 - inset, 1 - inset]) / bays
        t, up = np.broadcast_arrays(t, np.array(spans)[:, [0, 1, 1, 0]])
        return np.stack([x + across * t, up, z + along * t], axis=-1).reshape(-1, 4, 3)

    storeys = [(3.0 * floor + 1.0, 3.0 * floor + 2.6) for floor in range(1, floors)]
    brush.face(panels(0, (0, high)), wall, light)
    brush.face(panels(0.2, *storeys), trim, light)
    panes = panels(0.27, *((low + 0.1, top - 0.1) for low, top in storeys))
    brush.face(panes, MATERIALS["glass"], 1.0)
    some = panes[rng.random(len(panes)) < 0.35]
    if len(some):
        glow = scene.mood.lamps_lit
        brush.face(some, (255, 214, 130) if glow else (92, 112, 130), glow=glow)
    brush.face(panels(0.1, (0.3, 2.5)), MATERIALS["glass"], 0.8)
    brush.face(panels(0.05, (2.4, 3.0)), awning, light)
    brush.face(panels(0, (high - 0.4, high)), trim, light)


def building(scene: Scene, side: int, x: float, z0: float, z1: float) -> None:
    floors, wall = scene.rng.choice((2, 2, 3, 4, 5, 6)), scene.paint("building", 12)
    brush = Brush(scene, "building")
    shade, back, high = brush.light((0, 0, -1)), x + side * 12, 3.0 * floors + 0.8
    if z0 < 40:
        facade(scene, (x, z0), (back, z0), floors, wall, shade)
    else:  # too far to see a window
        brush.face(((x, 0, z0), (x, high, z0), (back, high, z0), (back, 0, z0)), wall, shade)
    facade(scene, (x, z0), (x, z1), floors, wall, brush.light((-side, 0, 0)))


def garden(scene: Scene, barrier: str, side: int, x: float, z0: float, z1: float) -> None:
    """Trees and bushes behind a fence or a wall."""
    for z in np.arange(z1, z0, -5 - z1 / 15):
        tree(scene, x + side * scene.rng.uniform(3, 9), z, side)
        leaves(scene, x + side * 1.5, z, 0, 2.6)
    brush, colour = Brush(scene, barrier), scene.paint(barrier)
    high, light = scene.rng.uniform(1.6, 2.4), brush.light((-side, 0, 0))
    plane = [(x, 0, z0), (x, high, z0), (x, high, z1), (x, 0, z1)]
    brush.face(plane, None if barrier == "fence" else colour, light)
    if barrier == "fence":
        pickets = np.arange(z0, z1, 0.5)[:, None, None]
        picket = np.array([(x, 0, 0), (x, high, 0), (x, high, 0.2), (x, 0, 0.2)])
        brush.face(picket + pickets * (0, 0, 1), colour, light)
    for up in (0.35, high - 0.3) if barrier == "fence" else np.arange(0.4, high, 0.4):
        brush.limb(((x, up, z0), (x, up, z1)), 0.05, np.multiply(colour, 0.7 * light))
    brush.limb(((x, high, z0), (x, high, z1)), 0.12, np.multiply(colour, 1.2 * light))


def smooth_noise(rng: np.random.Generator, rows: int, columns: int, size: tuple) -> np.ndarray:
    """Noise around 0 to 1 of rows x columns cells, enlarged to `size` (width, height)."""
    cells = rng.random((rows, columns), dtype=np.float32)
    return cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC)


def sky(scene: Scene) -> None:
    height, width = int(scene.horizon) + 2, scene.width
    size = (width // 4, height // 4)
    noise = sum(smooth_noise(scene.rng, 2**k, 2**k, size) / 2**k for k in (2, 3, 4, 5)) * 4
    cloud = np.clip(noise * 1.6 - scene.rng.uniform(1.2, 1.9), 0, 0.9)[..., None]
    down = np.linspace(0, 1, size[1])[:, None, None] ** 1.2
    air = np.multiply(scene.mood.zenith, 1 - down) + np.multiply(scene.mood.horizon, down)
    view = air * (1 - cloud) + np.multiply(scene.mood.cloud, cloud)
    scene.image[:height] = cv2.resize(np.clip(view, 0, 255).astype(np.uint8), (width, height))


def ground(scene: Scene, edges: list[float], names: list[str]) -> None:
    """Paint strips along the street: names[i] lies between edges[i] and edges[i+1], x in metres."""

    def patches(name: str, colour: Colour, left: float, right: float, spans, light=1.0) -> None:
        corners = [((left, 0, a), (left, 0, b), (right, 0, b), (right, 0, a)) for a, b in spans]
        Brush(scene, name).face(corners, colour, light)

    depths = list(pairwise(np.geomspace(NEAR, 160, 11)))
    for name, (left, right) in zip(names, pairwise(edges), strict=True):
        for span in depths:  # one by one, for each has its haze
            patches(name, GROUND[name], left, right, [span])
        if name == "rail track":
            sleepers, middle = [(z, z + 0.4) for z in np.arange(3, 40, 0.9)], (left + right) / 2
            patches(name, GROUND[name], middle - 1.3, middle + 1.3, sleepers, 0.7)
            for rail in (middle - 0.72, middle + 0.72):
                patches(name, (205, 205, 210), rail - 0.08, rail + 0.08, depths)
        elif name == "sidewalk":
            joints = [(z, z + 0.07) for z in np.arange(3, 30, 1.4)]
            patches(name, GROUND[name], left, right, joints, 0.85)
    road, white, z = names.index("road"), (214, 214, 210), scene.crossing
    for kerb in edges[road : road + 2]:
        patches("sidewalk", (196, 192, 188), kerb - 0.1, kerb + 0.1, depths)
    dashes = [(start, start + 4) for start in np.arange(scene.rng.uniform(2, 6), 90, 8)]
    patches("road", white, -1.78, -1.62, dashes)
    patches("road", GROUND["road"], -150, 150, [(z + 4, z + 11)])
    patches("road", white, -1.6, 1.6, [(z - 1.6, z - 1.1)])
    for stripe in np.arange(edges[road] + 0.5, edges[road + 1] - 0.6, 1.1):
        patches("road", white, stripe, stripe + 0.55, [(z, z + 3)])


def spread(scene: Scene, start: float, stop: float, gap: tuple) -> list[float]:
    """Distances from start to stop, a random gap apart, none of them in the side street."""
    places = start + np.cumsum(scene.rng.uniform(*gap, size=int((stop - start) / gap[0]) + 1))
    past = places - scene.crossing
    return places[(places < stop) & ((past < 3.5) | (past > 11.5))].tolist()


def roadside(scene: Scene, side: int, kerb: float, star: str, barrier: str, houses: float) -> list:
    """Place what stands on the left (-1) or right (1); return strips of ground as (name, width).

    `houses` is the share of houses; on the other lots are gardens.
    """
    rng, turn = scene.rng, scene.crossing
    strips = [("rail track", 3.5)] if side < 0 and star == "train" else []
    strips += [("terrain", rng.uniform(1.4, 2.6))] if rng.random() < 0.6 else []
    pavement = kerb + sum(width for _, width in strips)
    strips += [("sidewalk", rng.uniform(3, 4.4)), ("terrain", 200.0)]
    line, z = side * (pavement + strips[-2][1] + 0.4), rng.uniform(2, 5)
    while z < 80:
        end = z + rng.uniform(9, 18)
        if z < turn < end:
            end = turn + 3.5
        if turn <= z < turn + 11.5:
            end = turn + 11.5
        elif rng.random() < houses:
            scene.place(end, building, side, line, z, end)
        else:
            scene.place(end, garden, barrier, side, line, z, end)
        z = end
    for painter, offset, gap in FURNITURE:
        for z in spread(scene, 2, 55, gap):
            scene.place(z, painter, side * (pavement + rng.uniform(*offset)), z, side)
    return strips


def traffic(scene: Scene, kerbs: dict[int, float], star: str) -> None:
    """Place who moves on the road, and the parked cars: `star` is sure to be seen."""
    rng, crosswalk = scene.rng, scene.crossing
    for side in (-1, 1):
        for z in spread(scene, 2, 70, (7, 16)) if kerbs[side] > 3.6 - 2.4 * side else ():
            scene.place(z, vehicle, "car", side * (kerbs[side] - 1.1), z, (1 - side) * np.pi / 2)
    big = star if star in ("bus", "truck") else "car"
    ahead, oncoming = ("car", big) if rng.random() < 0.5 else (big, "car")
    scene.place(z := rng.uniform(11, 20), vehicle, ahead, rng.uniform(-0.3, 0.3), z)
    if star == "train":
        z, yaw = rng.uniform(19, 26), rng.choice((0, np.pi))
        scene.place(z, vehicle, star, -kerbs[-1] - 1.75, z, yaw)
    else:  # nothing hides the tram
        scene.place(z := rng.uniform(13, 22), vehicle, oncoming, -3.5, z, np.pi)
    for z in spread(scene, 32, 80, (9, 20)):
        scene.place(z, vehicle, "car", -3.5, z, np.pi)
    bike = star if star == "motorcycle" else "bicycle"
    for x, yaw in ((rng.uniform(0.9, 1.8), 0.0), (rng.uniform(-3, -1.7), np.pi)):
        z, swerve = rng.uniform(6.5, 14), rng.choice((-1, 1)) * rng.uniform(0.4, 1.1)
        scene.place(z, two_wheeler, bike, x, z, yaw + swerve)
    for z in crosswalk + rng.uniform(0.2, 2.8, 3):
        scene.place(z, person, rng.uniform(-6, 3), z, 1, "road")
    scene.place(crosswalk + 6, vehicle, "car", rng.uniform(-9, 6), crosswalk + 6, np.pi / 2)


def backdrop(scene: Scene) -> None:
    """Place the houses and trees in which the street ends."""
    for x in np.arange(-72, 72, 18.0):
        floors, end = scene.rng.integers(2, 6), x + scene.rng.uniform(10, 18)
        scene.place(120, facade, (x, 100), (end, 100), floors, scene.paint("building"), 0.8)
        scene.place(110, tree, end, 95, 1)


# What is sure to be in a scene, in turn: a vehicle, and what bounds the gardens.
CAST = (("train", "fence"), ("bus", "wall"), ("motorcycle", "fence"), ("truck", "wall"))


def draw_scene(seed: int, split: str, index: int, height: int, width: int) -> tuple:
    """Draw scene `index` of a split, which depends on nothing but these numbers.

    Returns:
        image (height,width,3) uint8 RGB, label ids of Cityscapes (height,width) uint8.
    """
    rng = np.random.default_rng((seed, list(CITIES).index(split), index))
    scene = Scene(rng, height, width)
    star, barrier = CAST[index % len(CAST)]
    parking = rng.choice((0, 2.2), 2)
    kerbs = {-1: 5.4 + parking[0] * (star != "train"), 1: 2.0 + parking[1]}
    houses = (0.85, 0.2) if star == "train" or rng.random() < 0.5 else (0.2, 0.85)
    left = roadside(scene, -1, kerbs[-1], star, barrier, houses[0])
    right = roadside(scene, 1, kerbs[1], star, barrier, houses[1])
    traffic(scene, kerbs, star)
    backdrop(scene)

    names, widths = zip(*left[::-1], ("road", kerbs[-1] + kerbs[1]), *right, strict=True)
    edges = np.cumsum([0, *widths]) - sum(widths[: len(left)]) - kerbs[-1]
    sky(scene)
    ground(scene, edges.tolist(), list(names))
    for _, paint in sorted(scene.actors, key=lambda actor: -actor[0]):
        paint()
    return develop(scene)


def develop(scene: Scene) -> tuple:
    """Canvas to image and label map: bonnet of the car, texture, focus, exposure, sensor noise."""
    rng, height, width = scene.rng, scene.height, scene.width
    middle, size = (int(scene.centre), int(height * 1.04)), (int(width * 0.42), int(height * 0.13))
    cv2.ellipse(scene.labels, middle, size, 0, 0, 360, LABEL_IDS["ego vehicle"], -1)
    for shrink, colour in ((1.0, (30, 32, 36)), (0.93, (52, 56, 64)), (0.7, (70, 76, 86))):
        axes = (int(size[0] * shrink), int(size[1] * shrink))
        cv2.ellipse(scene.image, middle, axes, 0, 0, 360, colour, -1)
    small = (width // SUPERSAMPLING, height // SUPERSAMPLING)
    image = cv2.resize(scene.image, small, interpolation=cv2.INTER_AREA).astype(np.float32)
    offset = SUPERSAMPLING // 2
    labels = np.ascontiguousarray(scene.labels[offset::SUPERSAMPLING, offset::SUPERSAMPLING])
    roughness = np.zeros(256, np.float32)
    for name, amount in ROUGHNESS.items():
        roughness[LABEL_IDS[name]] = amount
    grain = rng.random(labels.shape, dtype=np.float32) * 2 + smooth_noise(rng, 16, 12, small) - 1.5
    image *= (1 + roughness[labels] * grain)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7)) * rng.uniform(0.95, 1.2)
    image += rng.random(image.shape, dtype=np.float32) * 10 - 5
    return np.clip(image, 0, 255).astype(np.uint8), labels


def files_of(output: Path, split: str, index: int) -> tuple[Path, Path]:
    """Paths of an image and of its labels as Cityscapes names them; 19 is its labelled frame."""
    cities = CITIES[split]
    city = cities[index % len(cities)]
    name = f"{city}_{index // len(cities):06d}_000019"
    image = output / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    return image, output / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"


def draw_dataset(output: Path, train: int, val: int, height: int, width: int, seed: int) -> None:
    """Draw `train` and `val` scenes of (height,width) pixels into `output`, unless they are there.

    Raises:
        InputError: a number out of range, or `output` holds something that was not drawn here.
    """
    if min(train, val) < 1 or min(height, width) < 64 or seed < 0:
        raise InputError(
            f"{train} and {val} scenes of {height}x{width} pixels, seed {seed}: expected at least "
            "1 scene of each split, sides of 64 pixels or more and a seed of 0 or more"
        )
    marker = output / MARKER
    settings = {
        "version": VERSION,
        "train": train,
        "val": val,
        "size": [height, width],
        "seed": seed,
    }
    scenes = [("train", i) for i in range(train)] + [("val", i) for i in range(val)]
    if marker.is_file():
        paths = [path for scene in scenes for path in files_of(output, *scene)]
        if marker.read_text() == json.dumps(settings) and all(path.is_file() for path in paths):
            print(f"{output}: the {len(scenes)} street scenes are there already")
            return
    elif output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(
            f"{output} exists and was not drawn by this tool: expected an empty or a new folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    marker.write_text("unfinished")
    for folder in ("leftImg8bit", "gtFine"):
        shutil.rmtree(output / folder, ignore_errors=True)
    for split, index in tqdm(scenes, "drawing street scenes", disable=None):
        image, labels = draw_scene(seed, split, index, height, width)
        pictures = (image[..., ::-1], labels)
        for path, pixels in zip(files_of(output, split, index), pictures, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    marker.write_text(json.dumps(settings))
    print(f"{output}: {train} street scenes for training, {val} for evaluation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="a new or empty folder, or one drawn before")
    parser.add_argument("--train", type=int, default=160, help="number of training scenes")
    parser.add_argument("--val", type=int, default=24, help="number of evaluation scenes")
    parser.add_argument("--height", type=int, default=256, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    try:
        draw_dataset(**vars(parser.parse_args()))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
