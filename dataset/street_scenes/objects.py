"""What stands in a road scene: vehicles, people, street furniture, trees, houses, gardens."""

import cv2
import numpy as np

from projects.SegFormer.dataset.street_scenes.canvas import (
    LABEL_IDS,
    MATERIALS,
    NEAR,
    Brush,
    Colour,
    Scene,
    circle,
    shadow,
)


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
