"""Two more scenes to measure by, beside the bundled one: a garden under an open sky, and a shelf seen from the front.

Needs `bpy`. As in scene.py: metres, world z up, an instance id on every Blender object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import meshes as geo
from . import textures as tex
from .scene import Builder, build_light, build_room, painted, sky

CUP = [(0, 0), (0.036, 0), (0.041, 0.006), (0.043, 0.03), (0.043, 0.098), (0.0395, 0.099), (0.039, 0.03), (0.036, 0.01),
       (0, 0.009)]  # fmt: skip
GARDEN = [
    # name, model, height, x, y, z, turn
    ("table", "oakTable", 0.72, 0, 0, 0.03, 20),
    ("chair_1", "foldingChair", 0.85, -1.1, 0.2, 0.03, 90),
    ("chair_2", "foldingChair", 0.85, 0.3, -1.0, 0.03, 190),
    ("bench", "bench", 0.8, 0.2, 2.2, 0, 0),
    ("barrel", "barrel", 0.9, -1.9, 1.7, 0, 0),
    ("wheelbarrow", "wheelbarrow", 0.75, 2.2, -1.2, 0, 40),
    ("lantern", "stoneLantern", 1.1, 2.1, 1.6, 0, 0),
    ("mailbox", "mofx_mailbox", 1.1, -2.3, -1.5, 0, 30),
    ("flowers", "flowerBox", 0.45, -0.7, -2.2, 0, 0),
    ("rock_1", "rock1", 0.4, 1.0, -2.3, 0, 0),
    ("rock_2", "rock2", 0.5, -2.7, 0.3, 0, 0),
    ("motorbike", "motorbike", 1.0, 3.0, 0.3, 0, 70),
    ("crate", "crate", 0.45, -1.0, 1.4, 0.03, 25),
    ("plant", "plant", 0.8, 1.2, 1.2, 0.03, 0),
    ("bread", "bread", 0.1, -0.2, 0.05, 0.75, 30),
    ("chicken", "chicken", 0.14, 0.2, -0.05, 0.75, 0),
    ("cactus", "cactus", 0.28, 0.0, 0.25, 0.75, 0),
    ("carton", "tetrapak", 0.22, 0.35, 0.2, 0.75, 0),
]
SHELF = [
    ("teddy", "teddyBear", 0.27, -0.65, 1.8, 0.55, 0),
    ("crate", "crate", 0.2, -0.34, 1.8, 0.55, 15),
    ("basketball", "basketball", 0.22, -0.07, 1.8, 0.55, 0),
    ("barrel", "barrel", 0.25, 0.3, 1.8, 0.55, 0),
    ("handbag", "handbag", 0.24, 0.62, 1.8, 0.55, 90),
    ("cactus", "cactus", 0.26, -0.72, 1.8, 0.95, 0),
    ("lantern", "lantern", 0.26, -0.5, 1.8, 0.95, 0),
    ("toy", "woodToy", 0.14, -0.27, 1.8, 0.95, 0),
    ("biplane", "cartoon_biplane", 0.13, -0.02, 1.8, 0.95, 30),
    ("plant", "littlePlant", 0.25, 0.7, 1.8, 0.95, 0),
    ("clock", "cuckooClock", 0.27, 0.68, 1.8, 1.35, 0),
    ("headphones", "headphones", 0.17, -0.65, 1.8, 1.35, 0),
    ("horse", "caballito", 0.22, 0.25, 1.8, 1.35, 70),
    ("bottle", "flacon", 0.15, 0.46, 1.8, 1.35, 0),
]
BOOKS = [
    # width, height, cover, marks
    (0.05, 0.24, "1f4e5f", "e8c547 f4f1de"),
    (0.035, 0.21, "a63a50", "f0e7d8 f3a712"),
    (0.06, 0.26, "e0a458", "419d78 2d3047"),
    (0.03, 0.2, "2f5d3a", "f4e8d0 c0392b"),
    (0.055, 0.23, "4b3a6b", "f2cc8f 81b29a"),
    (0.045, 0.25, "d9d2c0", "7b2d26 254d32"),
    (0.04, 0.22, "27272a", "e63946 f1faee"),
]
BOXES = [("3a7d44", -0.55, (0.3, 0.2, 0.14)), ("d98324", -0.2, (0.22, 0.2, 0.2)), ("264653", 0.45, (0.36, 0.22, 0.12))]


def build_garden(b: Builder) -> None:
    """Fill a lawn with garden furniture, under the sky of a wood: nothing is known of what is behind it."""
    rng = b.rng("garden")
    grass = tex.mottle(rng, tex.flat(1600, 1600, tex.hex_colour("4c7a34")), 0.5, 160)
    grass = tex.scatter(rng, grass, 5000, tex.palette("6fa04a 3d6428 85b35c c9c25a 5b8a3c"), (3, 12), (5, 6, 2))
    b.add(b.item("lawn", "grass", stuff=True), geo.plane(16, 16), painted("grass", grass, 0.95))
    stones = painted("stones", tex.mosaic(rng, 900, 900, 160, tex.palette("9a958c b5afa3 7f7b74 c2b8a3")), 0.9)
    b.add(b.item("patio", "patio", stuff=True), geo.box((3.4, 2.6, 0.03), atlas=False), stones, (0, 0, 0), 10)
    _models(b, GARDEN)
    for name, x, y in (("mug_1", -0.35, -0.15), ("mug_2", 0.1, -0.25)):
        _mug(b, name, "b3202a", (x, y, 0.75), b.rng("gmug"))
    sky(0.9, "forest.exr")


def build_shelf(b: Builder) -> None:
    """Stand a shelf with things, and books in a row, at a wall of the room."""
    build_room(b)
    rng, shelf, y = b.rng("shelf"), b.item("shelf", "shelf", stuff=True), 1.83
    wood = painted("shelfw", tex.planks(rng, 600, 1800, 3, tex.palette("c9a67a b9925f d2b58b")), 0.5)
    side = painted("shelfs", tex.planks(rng, 300, 1200, 1, tex.palette("b08958")), 0.5)
    for z in (0.55, 0.95, 1.35, 1.72):
        b.add(shelf, geo.box((1.7, 0.30, 0.025), atlas=False), wood, (0, y, z - 0.025))
    for x in (-0.85, 0.85, 0.1):
        b.add(shelf, geo.box((0.025, 0.30, 1.2), atlas=False), side, (x, y, 0.52))
    _models(b, SHELF)
    x = -0.45
    for k, (width, height, cover, marks) in enumerate(BOOKS):
        own = b.rng(f"shelfbook{k}")
        look = tex.scatter(own, tex.flat(500, 500, tex.hex_colour(cover)), 20, tex.palette(marks), (18, 50))
        look = tex.text_lines(own, look, (0.2, 0.2, 0.8, 0.35), 2, tuple(tex.palette(marks)[1]))
        book = geo.box((width, 0.17, height), atlas=False)
        b.add(b.item(f"book_{k + 1}", "book"), book, painted(f"sb{k}", look), (x + width / 2, y - 0.04, 1.35))
        x += width + 0.003
    for k, (code, x) in enumerate([("b3202a", 0.22), ("2f6690", 0.36), ("b3202a", 0.5)]):
        _mug(b, f"mug_{k + 1}", code, (x, y - 0.06, 0.95), b.rng(f"smug{k}"))
    boxes = [
        ("3a7d44", -0.55, (0.3, 0.2, 0.14)),
        ("d98324", -0.2, (0.22, 0.2, 0.2)),
        ("264653", 0.45, (0.36, 0.22, 0.12)),
    ]
    for k, (code, x, size) in enumerate(boxes):
        look = tex.scatter(b.rng(f"sbox{k}"), tex.flat(400, 500, tex.hex_colour(code)), 30,
                           tex.palette("f4f1de e9c46a"), (14, 40))  # fmt: skip
        skin = painted(f"sbox{k}", tex.framed(look, 14, (0.1, 0.1, 0.1)))
        b.add(b.item(f"box_{k + 1}", "box"), geo.box(size, atlas=False), skin, (x, y - 0.02, 1.72), 6 * k - 6)
    hills = tex.landscape(rng, 500, 400, tex.palette("8ec6e6 f3e7c9"), tex.palette("7d8fb3 5c7a86 48705a"))
    sheet = geo.plane(0.4, 0.5).turned(geo.rotation("x", 90))
    b.add(b.item("picture", "poster"), sheet, painted("picture", hills, 0.8), (-1.2, 1.99, 1.45))
    build_light()


def _models(b: Builder, things: Sequence[tuple[str, str, float, float, float, float, float]]) -> None:
    for name, model, height, x, y, z, turn in things:
        b.model(b.item(name, name.rstrip("_0123456789")), model, height, (x, y, z), turn)


def _mug(b: Builder, name: str, code: str, at: tuple[float, float, float], rng: np.random.Generator) -> None:
    glaze = tex.scatter(rng, tex.flat(300, 800, tex.hex_colour(code)), 60, tex.palette("f4f1de f2cc8f"), (10, 26))
    b.add(b.item(name, "mug"), geo.lathe(CUP), painted(name, glaze, 0.45), at)
