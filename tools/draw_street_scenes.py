"""Draw a small road-scene dataset in the official Cityscapes layout.

    python tools/draw_street_scenes.py OUTPUT [--train 160] [--val 24] [--height 256] [--width 512]

Everything stands in metres on a ground plane and is seen through a pinhole camera in a car. One
brush paints each shape into the image and into the label map at once, far things before near ones.
"""

import argparse
import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.cityscapes import CLASSES, TRAIN_IDS
from projects.SegFormer.modeling.errors import InputError

LABEL_IDS = {name: int(np.flatnonzero(TRAIN_IDS == i)[0]) for i, name in enumerate(CLASSES)}
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
    Mood((66, 76, 122), (244, 178, 124), (216, 140, 124), (0.74, 0.66, 0.68), (0.5, 0.5, 0.5), True),
)


class Scene:
    """Two canvases, `image` (h,w,3) uint8 RGB and `labels` (h,w) uint8, and the camera on them."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height * SUPERSAMPLING, width * SUPERSAMPLING
        self.image = np.zeros((self.height, self.width, 3), np.uint8)
        self.labels = np.full((self.height, self.width), LABEL_IDS["sky"], np.uint8)
        self.mood = MOODS[rng.choice(len(MOODS), p=(0.32, 0.28, 0.22, 0.18))]
        self.tint, self.air = np.array(self.mood.tint), np.array(self.mood.horizon)
        self.focal = self.width * rng.uniform(0.72, 0.84)
        self.centre = self.width * rng.uniform(0.44, 0.56)
        self.horizon = self.height * rng.uniform(0.4, 0.46)
        self.eye = rng.uniform(1.45, 1.75)  # metres above the road
        self.curve = rng.uniform(-0.0016, 0.0016)  # the road bends sideways by curve * z**2 metres
        self.visibility = rng.uniform(120, 260)  # metres until haze hides two thirds
        self.crossing = rng.uniform(15, 24)  # metres to the crosswalk; a side street 4 metres on
        self.actors = []  # (distance, painter without arguments)

    def place(self, z: float, painter: Callable, *arguments) -> None:
        """Have `painter` called with the scene and the arguments when it is the turn of z metres."""
        self.actors.append((z, partial(painter, self, *arguments)))

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (...,3), x right, y up, z ahead in metres, to canvas pixels (...,2)."""
        z = np.maximum(points[..., 2:], NEAR)
        view = points[..., :2] * (1, -1) / z + np.concatenate([self.curve * z, self.eye / z], axis=-1)
        return (view * self.focal + (self.centre + 0.5, self.horizon + 0.5)).astype(np.int32)

    def tone(self, colour: Colour, light: float, z: float, glow: bool = False) -> list[float]:
        """The colour as seen z metres away; what glows is not dimmed by the time of day."""
        haze = (1.0 - np.exp(-z / self.visibility)) * (0.3 if glow else 1.0)
        tint = (1 - haze) * (1 if glow else light * self.tint)
        return np.minimum(tint * colour + haze * self.air, 255).tolist()

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
        cos, sin = np.cos(yaw), np.sin(yaw)
        self.turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])  # (right, up, forward) @ turn
        self.sun = self.turn @ np.array(scene.mood.sun)
        self.eye = self.turn @ (np.array([-scene.curve * z * z, scene.eye, 0]) - self.origin)

    def light(self, normal) -> float:
        """Brightness of a surface with this outward normal: 0.66 in shade to 1.1 in the sun."""
        cosine = np.dot(normal, self.sun) / (np.linalg.norm(normal) * np.linalg.norm(self.sun))
        return 0.66 + 0.44 * max(0.0, float(cosine))

    def face(self, points, colour: Colour | None, light: float = 1.0, glow: bool = False) -> None:
        """Fill a polygon (N,3), or several of one colour (M,N,3)."""
        world = np.asarray(points, np.float64) @ self.turn + self.origin
        polygons = list(self.scene.project(world if world.ndim == 3 else world[None]))
        cv2.fillPoly(self.scene.labels, polygons, self.label)
        if colour is not None:
            z = max(float(world[..., 2].mean()), NEAR)
            cv2.fillPoly(self.scene.image, polygons, self.scene.tone(colour, light, z, glow))

    def limb(self, path, thickness: float, colour: Colour, light=1.0, glow=False) -> None:
        """Draw a round-ended line of `thickness` metres along `path` (N,3)."""
        world = np.asarray(path, np.float64) @ self.turn + self.origin
        pixels, z = [self.scene.project(world)], max(float(world[:, 2].mean()), NEAR)
        width = max(1, round(self.scene.focal * thickness / z))
        cv2.polylines(self.scene.labels, pixels, False, self.label, width)
        tone = self.scene.tone(colour, light, z, glow)
        cv2.polylines(self.scene.image, pixels, False, tone, width)

    def figure(self, parts, colours: dict[str, Colour], stretch=(1.0, 1.0, 1.0)) -> None:
        """Draw limbs listed as (thickness, material, *path)."""
        for thickness, material, *path in parts:
            glow = material == "tail" and self.scene.mood.lamps_lit
            self.limb(np.multiply(path, stretch), thickness, colours[material], glow=glow)

    def prism(self, outline, colours: dict[str, Colour]) -> None:
        """Paint a solid from its side view.

        `outline` lists (forward, up, half width, material) from the rear bottom over the top to the
        front bottom. A material is that of the surface up to the next corner; the first one is also
        that of the two sides.
        """
        surfaces = []
        for (f0, u0, w0, material), (f1, u1, w1, _) in zip(outline, outline[1:]):
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
            (hood, 0.96, 0.84, "body"), (2.0, 0.76, 0.82, "body"), (2.1, 0.24, 0.82, "body"))
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


# Half width, half length, outlines, panels, wheels (forward). A panel is (plane, material, from, to,
# lowest, highest, how many): plane 0 is both sides, from and to forward; -1 is the rear, 1 the front,
# from and to in half widths from the middle, mirrored.
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
        edges, gap = np.linspace(start, stop, count + 1), 0.09 * (count > 1)
        corners = [((a + gap, low), (a + gap, high), (b - gap, high), (b - gap, low))
                   for a, b in zip(edges, edges[1:])]  # fmt: skip
        if plane == 0 and abs(right) > wide:
            quads = [[(side, u, f) for f, u in quad] for quad in corners]
            brush.face(quads, colours[material], brush.light((side, 0.2, 0)))
        elif plane and plane * forward > long:
            end, lit = plane * (long + 0.02), material in ("tail", "head") and scene.mood.lamps_lit
            quads = [[(m * wide * r, u, end) for r, u in corners[0]] for m in (-1, 1)]
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
    (0.42, "vest", (0, 0.98, -0.2), (0, 1.38, 0.05)), (0.13, "skin", (0, 1.5, 0.1), (0, 1.58, 0.12)),
    (0.25, "skin", (0, 1.65, 0.14), (0, 1.68, 0.14)), (0.31, "helmet", (0, 1.75, 0.12), (0, 1.76, 0.12)),
)  # fmt: skip
TWO_WHEELERS = {  # wheel radius, half the distance of the axles, tyre, frame
    "bicycle": (0.36, 0.56, 0.08, (
        (0.09, "frame", (0, 0.36, -0.56), (0, 0.85, -0.2), (0, 0.8, 0.36), (0, 0.36, 0.56)),
        (0.09, "frame", (0, 0.36, -0.56), (0, 0.34, 0), (0, 0.8, 0.36)),
        (0.09, "frame", (0, 0.34, 0), (0, 0.9, -0.2)), (0.1, "dark", (0, 0.93, -0.3), (0, 0.93, -0.1)),
        (0.07, "dark", (-0.3, 1.0, 0.36), (0.3, 1.0, 0.36)))),
    "motorcycle": (0.33, 0.74, 0.18, (
        (0.17, "frame", (0, 0.34, -0.74), (0, 0.75, -0.2), (0, 0.8, 0.4), (0, 0.34, 0.74)),
        (0.4, "metal", (0, 0.5, -0.28), (0, 0.5, 0.3)), (0.34, "frame", (0, 0.8, -0.05), (0, 0.84, 0.38)),
        (0.22, "dark", (0, 0.76, -0.8), (0, 0.76, -0.15)), (0.2, "tail", (0, 0.72, -0.9), (0.01, 0.72, -0.9)),
        (0.08, "dark", (-0.36, 1.02, 0.36), (0.36, 1.02, 0.36)))),
}  # fmt: skip


def person(scene: Scene, x: float, z: float, side: int, ground: str = "sidewalk") -> None:
    """A walker, along the street or across it."""
    yaw = np.pi / 2 * scene.rng.integers(4) + scene.rng.uniform(-0.5, 0.5)
    coat = scene.paint("coat")
    colours = dict(MATERIALS, coat=coat, sleeve=np.multiply(coat, 0.8), hair=scene.paint("trousers", 30),
                   trousers=scene.paint("trousers"), skin=scene.paint("skin"))  # fmt: skip
    size = scene.rng.uniform(0.92, 1.08)
    shadow(scene, ground, x, z)
    Brush(scene, "person", x, z, yaw).figure(PERSON, colours, (size, size, scene.rng.uniform(0.5, 1.3)))


def two_wheeler(scene: Scene, name: str, x: float, z: float, yaw: float, ridden: bool = True) -> None:
    """A bicycle or a motorcycle, alone or with its rider, who is a class of its own."""
    radius, reach, tyre, frame = TWO_WHEELERS[name]
    colours = dict(MATERIALS, frame=scene.paint(name), vest=scene.paint("vest"), helmet=scene.paint(name),
                   trousers=scene.paint("trousers"), skin=scene.paint("skin"))  # fmt: skip
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
    brush, grey = Brush(scene, "pole", x, z), MATERIALS["metal"]
    brush.limb(((0, 0, 0), (0, 5.6, 0), (-side * 0.5, 6.1, 0), (-side * 1.8, 6.2, 0)), 0.2, grey)
    head = ((-side * 1.5, 6.15, 0), (-side * 2.0, 6.15, 0))
    brush.limb(head, 0.26, (255, 240, 190), glow=scene.mood.lamps_lit)


def traffic_light(scene: Scene, x: float, z: float, side: int) -> None:
    reach, lit = -side * scene.rng.choice((0.0, 2.4)), scene.rng.integers(3)
    arm = ((0, 0, 0), (0, 4.4, 0), (reach, 4.5, 0))
    Brush(scene, "pole", x, z).limb(arm, 0.2, MATERIALS["metal"])
    brush = Brush(scene, "traffic light", x, z)
    for right, base in {(0.0, 2.4), (reach, 3.9 if reach else 2.4)}:
        box = ((-0.4, 0), (-0.4, 1.9), (0.4, 1.9), (0.4, 0))
        brush.face([(right + r, base + u, -0.1) for r, u in box], (30, 32, 30))
        for index, colour in enumerate(((60, 245, 150), (255, 196, 40), (255, 50, 40))):
            lens = np.insert(circle(0.25) + (right, base + 0.37 + 0.58 * index), 2, -0.2, axis=1)
            brush.face(lens, colour, 0.3, glow=index == lit)


SIGNS = (  # corners, angle of the first one, colours from the rim inwards
    (16, 0.0, ((206, 24, 32), (246, 244, 240), (30, 34, 40))),
    (3, np.pi / 2, ((206, 24, 32), (250, 246, 236), (30, 34, 40))),
    (8, np.pi / 8, ((246, 240, 240), (206, 24, 32), (246, 240, 240))),
    (4, 0.0, ((246, 244, 236), (250, 200, 30))),
    (4, np.pi / 4, ((240, 244, 250), (22, 84, 190), (240, 244, 250))),
)


def sign(scene: Scene, x: float, z: float, side: int) -> None:
    top = scene.rng.uniform(2.3, 2.9)
    Brush(scene, "pole", x, z).limb(((0, 0, 0), (0, top, 0)), 0.16, MATERIALS["metal"])
    corners, start, colours = SIGNS[scene.rng.integers(len(SIGNS))]
    for colour, radius in zip(colours, (0.58, 0.44, 0.16)):
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
    for at, radius, light in zip(scene.project(points).tolist(), radii, lights):
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
    box = ((-0.3, 0, 0.3, "body"), (-0.3, 1.0, 0.34, "lid"), (0.3, 1.0, 0.34, "body"), (0.3, 0, 0.3, "body"))
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
        corners = [((bay + inset, low), (bay + inset, top), (bay + 1 - inset, top), (bay + 1 - inset, low))
                   for bay in range(bays) for low, top in spans]  # fmt: skip
        t, up = np.moveaxis(np.array(corners), -1, 0)
        return np.stack([x + across * t / bays, up, z + along * t / bays], axis=-1)

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
    facade(scene, (x, z0), (x + side * 12, z0), floors, wall, brush.light((0, 0, -1)))
    facade(scene, (x, z0), (x, z1), floors, wall, brush.light((-side, 0, 0)))
    high, back = 3.0 * floors + 0.8, x + side * 5
    if high - scene.eye < 0.6 * abs(x):  # the slope can be seen from below
        roof = [(x, high, z0), (x, high, z1), (back, high + 3.2, z1), (back, high + 3.2, z0)]
        brush.face(roof, (134, 74, 58), brush.light((-side, 1, 0)))


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
        brush.limb(((x, up, z0), (x, up, z1)), 0.05, colour, 0.7 * light)
    brush.limb(((x, high, z0), (x, high, z1)), 0.12, colour, 1.2 * light)


def sky(scene: Scene) -> None:
    height, width = int(scene.horizon) + 2, scene.width
    octaves = [scene.rng.random((2**k, 2**k), dtype=np.float32) for k in (2, 3, 4, 5)]
    size = (width // 4, height // 4)
    noise = sum(cv2.resize(o, size, interpolation=cv2.INTER_CUBIC) / 2**k for k, o in enumerate(octaves))
    cloud = np.clip(noise * 1.6 - scene.rng.uniform(1.2, 1.9), 0, 0.9)[..., None]
    down = np.linspace(0, 1, size[1])[:, None, None] ** 1.2
    air = np.multiply(scene.mood.zenith, 1 - down) + np.multiply(scene.mood.horizon, down)
    view = air * (1 - cloud) + np.multiply(scene.mood.cloud, cloud)
    scene.image[:height] = cv2.resize(np.clip(view, 0, 255).astype(np.uint8), (width, height))


def ground(scene: Scene, edges: list[float], names: list[str]) -> None:
    """Paint strips along the street: names[i] lies between edges[i] and edges[i+1], x in metres."""

    def patches(name: str, colour: Colour, left: float, right: float, near, far, light=1.0) -> None:
        corners = [[(left, 0, a), (left, 0, b), (right, 0, b), (right, 0, a)] for a, b in zip(near, far)]
        Brush(scene, name).face(corners, colour, light)

    depths = np.geomspace(NEAR, 160, 16)
    spans = [(a, b) for a, b in zip(depths, depths[1:])]
    for name, left, right in zip(names, edges, edges[1:]):
        for near, far in spans:
            patches(name, GROUND[name], left, right, [near], [far])
        if name == "road":
            kerbs = left, right
        elif name == "rail track":
            sleepers, middle = np.arange(3, 40, 0.9), (left + right) / 2
            patches(name, GROUND[name], middle - 1.3, middle + 1.3, sleepers, sleepers + 0.4, 0.7)
            for rail in (middle - 0.72, middle + 0.72):
                patches(name, (205, 205, 210), rail - 0.08, rail + 0.08, *np.transpose(spans))
        elif name == "sidewalk":
            joints = np.arange(3, 30, 1.4)
            patches(name, GROUND[name], left, right, joints, joints + 0.07, 0.85)
    for kerb in kerbs:
        patches("sidewalk", (196, 192, 188), kerb - 0.1, kerb + 0.1, *np.transpose(spans))
    dashes, white, z = np.arange(scene.rng.uniform(2, 6), 90, 8), (214, 214, 210), scene.crossing
    patches("road", white, -1.78, -1.62, dashes, dashes + 4)
    patches("road", GROUND["road"], -150, 150, [z + 4], [z + 11])
    patches("road", white, -1.6, 1.6, [z - 1.6], [z - 1.1])
    for stripe in np.arange(kerbs[0] + 0.5, kerbs[1] - 0.6, 1.1):
        patches("road", white, stripe, stripe + 0.55, [z], [z + 3])


def spread(scene: Scene, start: float, stop: float, gap: tuple) -> list[float]:
    """Distances from start to stop, each a random gap after the one before, none in the side street."""
    places = start + np.cumsum(scene.rng.uniform(*gap, size=int((stop - start) / gap[0]) + 1))
    past = places - scene.crossing
    return places[(places < stop) & ((past < 3.5) | (past > 11.5))].tolist()


def roadside(scene: Scene, side: int, kerb: float, star: str, barrier: str) -> list[tuple]:
    """Place what stands on the left (-1) or right (1); return strips of ground as (name, width)."""
    rng, turn = scene.rng, scene.crossing
    strips = [("rail track", 3.5)] if side < 0 and star == "train" else []
    strips += [("terrain", rng.uniform(1.4, 2.6))] if rng.random() < 0.6 else []
    pavement = kerb + sum(width for _, width in strips)
    strips += [("sidewalk", rng.uniform(3, 4.4)), ("terrain", 200.0)]
    line, z = side * (pavement + strips[-2][1] + 0.4), rng.uniform(2, 5)
    while z < 90:
        end = z + rng.uniform(9, 18)
        if end > turn + 3.5 and z < turn + 11.5:
            end = turn + 11.5
        elif rng.random() < 0.55:
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
    ahead, oncoming = ("car", star) if rng.random() < 0.5 else (star, "car")
    for lane, yaw, kind, z in ((0, 0, ahead, rng.uniform(11, 20)), (-3.5, np.pi, oncoming, rng.uniform(13, 22))):
        if star != "train" or lane == 0:
            kind = kind if kind in ("bus", "truck") else "car"
            scene.place(z, vehicle, kind, lane + rng.uniform(-0.3, 0.3), z, yaw)
    for z in spread(scene, 32, 80, (9, 20)):
        scene.place(z, vehicle, "car", -3.5, z, np.pi)
    if star == "train":
        z = rng.uniform(19, 26)
        scene.place(z, vehicle, star, -kerbs[-1] - 1.75, z, rng.choice((0, np.pi)))
    bike = star if star == "motorcycle" else "bicycle"
    for x, yaw in ((rng.uniform(1.0, 1.7), 0.0), (rng.uniform(-2.6, -1.7), np.pi)):
        z, swerve = rng.uniform(6.5, 12), rng.choice((-1, 1)) * rng.uniform(0.4, 1.1)
        scene.place(z, two_wheeler, bike, x, z, yaw + swerve)
    for z in crosswalk + rng.uniform(0.2, 2.8, 3):
        scene.place(z, person, rng.uniform(-6, 3), z, 1, "road")
    scene.place(crosswalk + 6, vehicle, "car", rng.uniform(-9, 6), crosswalk + 6, np.pi / 2)


def backdrop(scene: Scene) -> None:
    """Place the houses and trees in which the street ends."""
    for x in np.arange(-75, 75, 15.0):
        floors, wall, stop = scene.rng.integers(2, 6), scene.paint("building"), scene.rng.uniform(9, 15)
        scene.place(120, facade, (x, 100), (x + stop, 100), floors, wall, 0.8)
        scene.place(110, tree, x + stop, 95, 1)


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
    kerbs = {-1: 5.4 if star == "train" else 5.4 + rng.choice((0, 2.2)), 1: 2.0 + rng.choice((0, 2.2))}
    left = roadside(scene, -1, kerbs[-1], star, barrier)
    right = roadside(scene, 1, kerbs[1], star, barrier)
    traffic(scene, kerbs, star)
    backdrop(scene)

    names, widths = zip(*left[::-1], ("road", kerbs[-1] + kerbs[1]), *right)
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
    stains = cv2.resize(rng.random((16, 12), dtype=np.float32), small, interpolation=cv2.INTER_CUBIC)
    grain = rng.random(labels.shape, dtype=np.float32) * 2 + stains - 1.5
    image *= (1 + roughness[labels] * grain)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7)) * rng.uniform(0.85, 1.12)
    image += 3 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), labels
