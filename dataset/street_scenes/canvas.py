"""The canvas of the road scenes: a pinhole camera, a brush that works in metres, colours."""

import math
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import cv2
import numpy as np

from projects.SegFormer.dataset.cityscapes import CLASSES, TRAIN_IDS

LABEL_IDS = {name: TRAIN_IDS.tolist().index(i) for i, name in enumerate(CLASSES)}
LABEL_IDS |= {"ego vehicle": 1, "static": 4, "dynamic": 5, "rail track": 10}  # not evaluated
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
