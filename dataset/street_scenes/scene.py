"""A road scene: the ground, what stands where on it, and the picture of all of it.

Everything stands in metres on a ground plane and is seen through a pinhole camera in a car. One
brush paints each shape into the image and into the label map at once, far things before near ones.
"""

from itertools import pairwise

import cv2
import numpy as np

from projects.SegFormer.dataset.street_scenes.canvas import (
    GROUND,
    LABEL_IDS,
    NEAR,
    SUPERSAMPLING,
    Brush,
    Colour,
    Scene,
)
from projects.SegFormer.dataset.street_scenes.objects import (
    FURNITURE,
    building,
    facade,
    garden,
    person,
    tree,
    two_wheeler,
    vehicle,
)

CITIES = {"train": ("ampelfurt", "brunnhaven", "cobbleton"), "val": ("dellmark", "elmsquare")}
# Brightness noise from pixel to pixel: leaves are rough, the sky is smooth.
ROUGHNESS = {"vegetation": 0.24, "terrain": 0.16, "road": 0.05, "sidewalk": 0.05, "building": 0.05,
             "wall": 0.12, "rail track": 0.18, "fence": 0.06}  # fmt: skip


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
