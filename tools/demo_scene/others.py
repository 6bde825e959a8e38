"""More scenes to measure by, beside the bundled one: a garden, a shelf from the front, a room from inside, a street.

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

LOUNGE = [
    ("sofa", "couch2", 0.8, -1.55, 0.3, 0, 90),
    ("armchair", "relaxChair", 0.85, 1.3, -1.45, 0, 215),
    ("tv_cabinet", "televisionCabinet", 0.45, 1.85, 0.4, 0, 270),
    ("tv", "led_tv", 0.55, 1.85, 0.4, 0.45, 270),
    ("bookcase", "bookcase", 1.7, 0.6, 1.82, 0, 0),
    ("piano_bench", "pianoBench", 0.45, -0.4, -1.7, 0, 0),
    ("guitar", "electricGuitar", 1.0, -1.2, 1.8, 0, 0),
    ("plant", "decorativePlant", 1.1, 1.8, 1.6, 0, 0),
    ("lamp", "lamp2", 1.5, -1.85, -1.2, 0, 0),
    ("table", "table", 0.42, 0.0, 0.0, 0, 0),
    ("stool_1", "stool", 0.45, 0.85, 0.75, 0, 20),
    ("stool_2", "stool", 0.45, 0.3, -1.15, 0, 60),
    ("rocking_bed", "babyRockingBed", 0.6, -0.9, -1.2, 0, 30),
    ("basketball", "basketball", 0.24, 0.95, -0.55, 0, 0),
    ("toy", "woodToy", 0.16, -0.75, 0.95, 0, 50),
    ("handbag", "handbag", 0.3, -0.3, -1.7, 0.45, 15),
    ("teddy", "teddyBear", 0.32, -1.5, 0.75, 0.4, 80),
    ("clock", "cuckooClock", 0.35, -0.35, 1.9, 1.5, 0),
    ("cupcake", "cupcake", 0.09, 0.2, 0.1, 0.42, 0),
    ("chicken", "chicken", 0.13, -0.2, -0.1, 0.42, 20),
    ("radiator", "radiator", 0.6, 0.5, -1.92, 0, 180),
]
STREET = [
    ("truck", "peterbilt", 1.6, -9.5, 0.9, 0, 90),
    ("motorbike_1", "motorbike", 1.1, -3.2, 0.9, 0, 80),
    ("motorbike_2", "motorbike", 1.1, -1.7, 0.9, 0, 95),
    ("forklift", "forkLift", 2.1, 9.6, 1.0, 0, 60),
    ("bench_1", "bench", 0.85, -5.5, 3.0, 0.1, 0),
    ("bench_2", "bench", 0.85, 6.0, 3.0, 0.1, 0),
    ("bin_1", "dustbin", 0.9, -0.3, 2.9, 0.1, 0),
    ("bin_2", "dustbin", 0.9, 0.4, 2.9, 0.1, 0),
    ("mailbox", "mofx_mailbox", 1.2, 2.2, 2.6, 0.1, 0),
    ("lamp_1", "outdoorLamp", 2.6, -7.0, 2.3, 0.1, 0),
    ("lamp_2", "outdoorLamp", 2.6, 4.2, 2.3, 0.1, 0),
    ("flowers_1", "flowerBox", 0.5, -11.0, 3.3, 0.1, 0),
    ("flowers_2", "flowerBox", 0.5, 8.0, 3.3, 0.1, 0),
    ("plant_1", "plant", 1.3, -3.7, 3.4, 0.1, 0),
    ("plant_2", "plant", 1.3, 12.0, 3.4, 0.1, 40),
    ("barrel", "barrel", 0.95, 10.9, 3.2, 0.1, 0),
    ("railing", "pedestrianRailing2", 1.0, 3.4, 1.9, 0.1, 0),
    ("crate_1", "crate", 0.6, 1.6, 0.9, 0, 20),
    ("crate_2", "crate", 0.6, 1.65, 0.95, 0.6, 45),
    ("wheelbarrow", "wheelbarrow", 0.8, 5.0, 0.8, 0, 120),
    ("pallet", "pallet", 0.15, 7.2, 0.9, 0, 10),
    ("locker", "lockedLocker", 1.8, -12.9, 3.2, 0.1, 180),
]
HOUSES = [
    # x of the middle, width, height, wall, door
    (-12.0, 7.0, 5.2, "b5654a a2523c c47a58", "2f4858"),
    (-5.0, 6.6, 6.0, "d9cfae cbbf98 e4dcc2", "7d1538"),
    (2.0, 7.0, 4.6, "8f9aa0 a3adb2 7c878d", "39603d"),
    (9.5, 7.6, 5.6, "a8694f 96604e b97c5e", "1f4e5f"),
]


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


def build_lounge(b: Builder) -> None:
    """Furnish the room, to be seen from inside."""
    build_room(b)
    rng = b.rng("lounge")
    weave = tex.mosaic(rng, 700, 900, 120, tex.palette("7d1538 c08a5a e6d5b8 2f4858"))
    rug = painted("rug", tex.framed(weave, 40, tex.hex_colour("2b2d42")), 0.95)
    b.add(b.item("rug", "rug"), geo.box((2.1, 1.5, 0.012), atlas=False), rug, (0, 0, 0), 8)
    _models(b, LOUNGE)
    for name, code, x, y in (("mug_1", "2f6690", 0.1, -0.12), ("mug_2", "2f6690", -0.05, 0.14)):
        _mug(b, name, code, (x, y, 0.42), b.rng("lmug"))
    for k, (code, y) in enumerate((("e0a33a", 0.0), ("3f6f8f", -0.3))):
        look = tex.scatter(
            b.rng(f"cushion{k}"), tex.flat(300, 300, tex.hex_colour(code)), 40, tex.palette("f1e4c8"), (8, 22)
        )
        cushion = geo.box((0.14, 0.36, 0.36), atlas=False)
        cover, ident = painted(f"cushion{k}", look, 0.9), b.item(f"cushion_{k + 1}", "cushion")
        b.add(ident, cushion, cover, (-1.7, y + 0.2, 0.42), 0, ("y", -15), 0.05)
    for name, codes, at, turn in (
        ("picture_1", "8ec6e6 f3e7c9", (-1.1, 1.99, 1.75), 0),
        ("picture_2", "f6b26b fde9c4", (-2.19, 0.9, 1.5), 90),
        ("picture_3", "cfe0dc b7d0cd", (-0.6, -1.99, 1.5), 180),
    ):
        hills = tex.landscape(b.rng(name), 500, 700, tex.palette(codes), tex.palette("7d8fb3 5c7a86 48705a"))
        sheet = geo.plane(0.7, 0.5).turned(geo.rotation("x", 90))
        b.add(b.item(name, "poster"), sheet, painted(name, hills, 0.8), at, turn)
    build_light()


def build_street(b: Builder) -> None:
    """Stand a row of houses at a street of 30 m, with what is left along it, under an open sky."""
    rng = b.rng("street")
    tar = tex.scatter(rng, tex.mottle(rng, tex.flat(900, 3000, tex.hex_colour("4a4a4d")), 0.25, 200), 9000,
                      tex.palette("5c5c60 3a3a3d 6a6a6e 77746c"), (2, 6), (5, 6))  # fmt: skip
    b.add(b.item("road", "road", stuff=True), geo.plane(60, 24), painted("road", tar, 0.95))
    slabs = tex.mosaic(rng, 300, 2400, 700, tex.palette("9a958c b5afa3 8b867c c2b8a3"))
    kerb = geo.box((34, 2.6, 0.1), atlas=False)
    b.add(b.item("pavement", "pavement", stuff=True), kerb, painted("pavement", slabs, 0.9), (0, 3.0, 0))
    for k, (x, width, height, wall, door) in enumerate(HOUSES):
        own = b.rng(f"house{k}")
        rows, columns = int(120 * height), int(120 * width)
        face = tex.bricks(own, rows, columns, int(height / 0.22), tex.palette(wall))
        for storey in range(int(height // 2.2)):
            for window in range(3):
                top, left = rows - int(120 * (2.1 + 2.3 * storey)), int(columns * (0.08 + 0.33 * window))
                pane = tex.framed(
                    tex.mottle(own, tex.flat(140, 130, tex.hex_colour("33475b")), 0.3), 12, (0.93, 0.92, 0.88)
                )
                face[max(top, 8) : max(top, 8) + 140, left : left + 130] = pane
        face[rows - 250 :, columns // 2 - 60 : columns // 2 + 50] = tex.hex_colour(door)
        house = geo.box((width, 4.0, height), atlas=False)
        b.add(b.item(f"house_{k + 1}", "house", stuff=True), house, painted(f"house{k}", face, 0.9), (x, 6.3, 0))
    _models(b, STREET)
    sky(1.0, "city.exr")


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
    for k, (code, x, size) in enumerate(BOXES):
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
