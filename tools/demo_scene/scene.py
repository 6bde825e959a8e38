"""Build the demo scene in Blender: a room, a table and some twenty everyday things on and around it.

Needs `bpy`. Lengths are metres, world z up, the table's middle over the origin. Every Blender object carries
its instance id in the property `instance`.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import bpy  # pyright: ignore[reportMissingImports]
import numpy as np
from mathutils import Matrix, Vector  # pyright: ignore[reportMissingImports]

from . import meshes as geo
from . import textures as tex

ROOM = (4.4, 4.0, 2.6)
TABLE = (1.56, 1.0, 0.74)
TOP = TABLE[2]


@dataclass
class Item:
    """One line of instances.json."""

    id: int
    name: str
    kind: str
    stuff: bool = False
    parent: int | None = None


@dataclass
class Builder:
    """Collects the items while their meshes go to Blender; `models` is the unpacked furniture library."""

    seed: int
    models: Path
    items: list[Item] = field(default_factory=list)

    def rng(self, name: str) -> np.random.Generator:
        """Give each thing its own generator, so that changing one leaves the others as they are."""
        return np.random.default_rng([self.seed, 2, *name.encode()])

    def item(self, name: str, kind: str, stuff: bool = False, parent: int | None = None) -> int:
        """Register an instance and give its id (from 1)."""
        self.items.append(Item(len(self.items) + 1, name, kind, stuff, parent))
        return len(self.items)

    def add(
        self,
        ident: int,
        mesh: geo.Mesh,
        material: bpy.types.Material,
        at: tuple[float, float, float] = (0, 0, 0),
        turn: float = 0.0,
        tilt: tuple[str, float] | None = None,
        bevel: float = 0.0,
    ) -> bpy.types.Object:
        """Put a mesh at a place, turned about z (degrees) after an optional tilt (axis, degrees)."""
        data = bpy.data.meshes.new(self.items[ident - 1].name)
        data.from_pydata(mesh.verts.tolist(), [], mesh.faces.tolist())
        data.uv_layers.new().data.foreach_set("uv", mesh.uv.astype(np.float32).ravel())
        data.materials.append(material)
        data.shade_smooth()
        data.set_sharp_from_angle(angle=np.radians(35))
        thing = bpy.data.objects.new(data.name, data)
        if bevel:
            modifier = thing.modifiers.new("bevel", "BEVEL")
            modifier.width, modifier.segments, modifier.limit_method = bevel, 3, "ANGLE"
        self._place(thing, ident, at, turn, tilt)
        bpy.context.scene.collection.objects.link(thing)
        return thing

    def _place(self, thing: bpy.types.Object, ident: int, at: tuple, turn: float, tilt: tuple | None) -> None:
        matrix = np.eye(4)
        matrix[:3, :3] = geo.rotation("z", turn) @ (geo.rotation(*tilt) if tilt else np.eye(3))
        matrix[:3, 3] = at
        thing.matrix_world = Matrix(matrix.tolist())
        thing["instance"] = ident

    def model(self, ident: int, name: str, height: float, at: tuple[float, float, float], turn: float = 0.0) -> None:
        """Load a model of the furniture library, scaled to a height and stood at a place."""
        known = set(bpy.data.objects)
        bpy.ops.wm.obj_import(filepath=str(self.models / name / f"{name}.obj"))
        things = [o for o in bpy.data.objects if o not in known]
        bpy.context.view_layer.update()
        corners = np.array([o.matrix_world @ v.co for o in things for v in o.data.vertices])
        low, high = corners.min(0), corners.max(0)
        scale = height / (high - low)[2]
        shift = np.eye(4)
        shift[:3, 3] = [-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]]
        move = np.eye(4)
        move[:3, :3] = scale * geo.rotation("z", turn)
        move[:3, 3] = at
        for thing in things:
            thing.matrix_world = Matrix((move @ shift @ np.array(thing.matrix_world)).tolist())
            thing["instance"] = ident
            for material in thing.data.materials:
                _matt(material)


def _matt(material: bpy.types.Material) -> None:
    """Take gloss and metal off a material."""
    for node in material.node_tree.nodes:
        if node.type == "BSDF_PRINCIPLED":
            node.inputs["Roughness"].default_value = max(0.55, node.inputs["Roughness"].default_value)
            node.inputs["Metallic"].default_value = 0.0
            node.inputs["Specular IOR Level"].default_value = 0.25


def painted(name: str, image: np.ndarray, rough: float = 0.6) -> bpy.types.Material:
    """Make a material of an (H, W, 3) sRGB picture, row 0 on top."""
    height, width = image.shape[:2]
    picture = bpy.data.images.new(name, width, height)
    rgba = np.ones((height, width, 4), np.float32)
    rgba[..., :3] = np.clip(image[::-1], 0, 1)
    picture.pixels.foreach_set(rgba.ravel())
    picture.update()
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = nodes["Principled BSDF"]
    source = nodes.new("ShaderNodeTexImage")
    source.image, source.interpolation, source.extension = picture, "Cubic", "EXTEND"
    links.new(source.outputs["Color"], shader.inputs["Base Color"])
    shader.inputs["Roughness"].default_value = rough
    shader.inputs["Specular IOR Level"].default_value = 0.25
    return material


def mottled(b: Builder, name: str, code: str, amount: float = 0.2, rough: float = 0.6) -> bpy.types.Material:
    """Make a material of one slightly cloudy colour."""
    image = tex.mottle(b.rng(name), tex.flat(256, 256, tex.hex_colour(code)), amount, 12)
    return painted(name, image, rough)


def build_room(b: Builder) -> None:
    """Add floor and walls."""
    rng = b.rng("room")
    width, depth, height = ROOM
    boards = tex.palette("8a5f40 7a4f34 94694a 6e472f 845a40")
    floor = painted("floor", tex.planks(rng, 1500, 1650, 17, boards), 0.5)
    b.add(b.item("floor", "floor", stuff=True), geo.plane(width, depth), floor)
    for name, picture in _wallpapers(rng).items():
        turn = {"east": 0, "north": 90, "west": 180, "south": 270}[name]
        away, length = (depth / 2, width) if turn % 180 else (width / 2, depth)
        upright = geo.rotation("z", turn) @ geo.rotation("y", -90) @ geo.rotation("z", -90)
        wall = geo.plane(length, height).turned(upright)
        place = geo.rotation("z", turn) @ [away, 0, 0]
        material = painted(f"wall_{name}", picture, 0.9)
        b.add(b.item(f"wall_{name}", "wall", stuff=True), wall, material, (*place[:2], height / 2))


def _wallpapers(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Paint the four walls, each in a look of its own."""
    height = 1000
    wide, deep = int(height * ROOM[0] / ROOM[2]), int(height * ROOM[1] / ROOM[2])
    warm = tex.palette("c9503c e0a33a 3f6f8f 5d8a4a 84507c f1e4c8 2f4858")
    cool = tex.palette("2c5f73 7fb7be d3f3ee dacc3e bc2c1a 7d1538 f6f0e0")
    green = tex.palette("39603d 6b9a56 a3b18a d9c27e c77d4f efe9d8")
    east = tex.bricks(rng, height, deep, 26, tex.palette("b5654a a2523c c47a58 96604e d08f6e b9846a"))
    north = tex.mottle(rng, tex.flat(height, wide, tex.hex_colour("e9dfc7")), 0.05)
    north = tex.scatter(rng, north, 420, warm, (9, 34))
    west = tex.stripes(height, deep, tex.palette("cfe0dc b7d0cd"), np.linspace(0, 1, 40)[1:])
    west = tex.scatter(rng, tex.mottle(rng, west, 0.06), 320, cool, (8, 30), (1, 2, 4, 5))
    south = tex.mottle(rng, tex.flat(height, wide, tex.hex_colour("dfe3cf")), 0.08)
    south = tex.scatter(rng, south, 700, green, (10, 36), (6, 6, 2, 0))
    return {"east": east, "west": west, "north": north, "south": south}


def build_surroundings(b: Builder) -> None:
    """Add posters, rug and chair."""
    rng = b.rng("surroundings")
    hills = tex.palette("7d8fb3 5c7a86 48705a 2f4a36")
    dunes = tex.palette("e9a15b cc6b3d 9c4430 5d2a2c")
    cells = tex.palette("d1495b edae49 66a182 2e4057 00798c f4f1de")
    posters = [
        (
            "poster_north",
            tex.landscape(rng, 700, 500, tex.palette("8ec6e6 f3e7c9"), hills),
            0,
            (-0.75, 1.99, 1.35),
        ),
        (
            "poster_east",
            tex.framed(tex.mosaic(rng, 560, 700, 90, cells), 26, (0.12, 0.12, 0.14)),
            -90,
            (2.19, 0.2, 1.3),
        ),
        (
            "poster_west",
            tex.landscape(rng, 700, 500, tex.palette("f6b26b fde9c4"), dunes),
            90,
            (-2.19, -0.5, 1.35),
        ),
    ]
    for name, picture, turn, at in posters:
        high = 0.8
        wide = high * picture.shape[1] / picture.shape[0]
        sheet = geo.plane(wide, high).turned(geo.rotation("x", 90))
        b.add(b.item(name, "poster"), sheet, painted(name, picture, 0.8), at, turn)
    rug = tex.checks(700, 1000, 14, 20, tex.palette("8c2f39 d9b44a 2f4b7c ede0c8 46714f"))
    rug = tex.mottle(rng, tex.scatter(rng, rug, 200, tex.palette("f2e8cf 1d3557 e07a5f"), (8, 22)), 0.25, 200)
    rug = painted("rug", tex.framed(rug, 30, (0.85, 0.78, 0.62)), 0.95)
    b.add(b.item("rug", "rug"), geo.box((2.3, 1.6, 0.012), atlas=False), rug, (0.1, -0.1, 0), 6)
    b.model(b.item("chair", "chair"), "oakChair", 1.0, (-1.5, 1.25, 0), 40)


def build_table(b: Builder) -> None:
    """Add the table: a plank top on four legs."""
    width, depth, top = TABLE
    rng = b.rng("table")
    ident = b.item("table", "table", stuff=True)
    wood = tex.planks(rng, 1150, 1800, 9, tex.palette("d2b184 bf9a68 d9bd92 b08d5e c7a676"))
    b.add(ident, geo.box((width, depth, 0.035), atlas=False), painted("table", wood, 0.5), (0, 0, top - 0.035))
    legs = painted("table_legs", tex.planks(rng, 128, 512, 1, tex.palette("a8783f")), 0.6)
    for x in (-1, 1):
        for y in (-1, 1):
            at = (x * (width / 2 - 0.08), y * (depth / 2 - 0.08), 0)
            b.add(ident, geo.box((0.06, 0.06, top - 0.035), atlas=False), legs, at)


def build_things(b: Builder) -> None:
    """Put the things on the table."""
    for add in (
        _placemat,
        _mugs,
        _tea_box,
        _books,
        _fruit_bowl,
        _banana,
        _oil_bottle,
        _pot,
        _plant,
        _pen,
        _library_models,
    ):
        add(b)


def _placemat(b: Builder) -> None:
    rng = b.rng("placemat")
    cloth = tex.stripes(400, 560, tex.palette("2a9d8f e9c46a f4f1de e76f51 264653"), np.sort(rng.random(17)))
    cloth = tex.mottle(rng, tex.scatter(rng, cloth, 60, tex.palette("ffffff 1d3557 f4a261"), (8, 18)), 0.2, 120)
    mesh = geo.box((0.46, 0.33, 0.003), atlas=False)
    b.add(b.item("placemat", "placemat"), mesh, painted("placemat", cloth, 0.9), (-0.24, -0.27, TOP), 7)


def _mugs(b: Builder) -> None:
    outside = [(0.0, 0.0), (0.036, 0.0), (0.041, 0.006), (0.043, 0.03), (0.043, 0.098)]
    inside = [(0.0395, 0.099), (0.039, 0.03), (0.036, 0.01), (0.0, 0.009)]
    cup = geo.lathe(outside + inside)
    bow = np.linspace(-0.5, 0.5, 25) * np.pi
    path = np.stack([0.0415 + 0.029 * np.cos(bow), 0 * bow, 0.052 + 0.031 * np.sin(bow)], -1)
    handle = geo.tube(path, 0.0058)
    places = [("mug_1", (-0.33, -0.24, TOP + 0.003), 200), ("mug_2", (0.1517, -0.245, TOP), -60)]
    for name, at, turn in places:
        rng = b.rng("mug")  # the same picture twice: two of one kind
        glaze = tex.mottle(rng, tex.flat(300, 800, tex.hex_colour("2f6690")), 0.12)
        glaze = tex.scatter(rng, glaze, 60, tex.palette("f4f1de f2cc8f 81b29a"), (10, 26), (0, 1, 2))
        ident = b.item(name, "mug")
        b.add(ident, cup, painted(name, glaze, 0.45), at, turn)
        part = b.item(f"{name}.handle", "handle", parent=ident)
        b.add(part, handle, mottled(b, f"{name}.handle", "2f6690", 0.12, 0.45), at, turn)


def _tea_box(b: Builder) -> None:
    rng = b.rng("tea_box")
    cells = []
    for k in range(6):
        cell = tex.flat(300, 240, tex.hex_colour("c8d96f" if k % 2 else "f2e9c9"))
        cell = tex.scatter(rng, cell, 26, tex.palette("3a7d44 254d32 9dbf5a d98324"), (14, 34), (6, 6, 2))
        cell[185:262, 30:210] = tex.hex_colour("7b2d26")
        cell = tex.text_lines(rng, cell, (0.17, 0.65, 0.83, 0.86), 3, (0.97, 0.93, 0.8))
        cells.append(tex.framed(cell, 10, tex.hex_colour("254d32")))
    atlas = np.concatenate([np.concatenate(cells[:3], 1), np.concatenate(cells[3:], 1)], 0)
    mesh = geo.box((0.15, 0.075, 0.19))
    b.add(b.item("tea_box", "box"), mesh, painted("tea_box", atlas), (0.27, -0.245, TOP), 0, bevel=0.002)


def _books(b: Builder) -> None:
    looks = [
        ("book_1", (0.25, 0.175, 0.042), "1f4e5f", "e8c547 f4f1de 79a8a9", (0.5, 0.02, TOP), 24),
        ("book_2", (0.215, 0.15, 0.033), "a63a50", "f0e7d8 f3a712 2b2d42", (0.495, 0.025, TOP + 0.042), -8),
        ("book_3", (0.17, 0.115, 0.024), "e0a458", "419d78 2d3047 fffdf7", (0.51, 0.015, TOP + 0.075), 37),
    ]
    for name, size, cover, marks, at, turn in looks:
        rng = b.rng(name)
        colour = tex.hex_colour(cover)
        front = tex.scatter(rng, tex.flat(420, 600, colour), 22, tex.palette(marks), (20, 60))
        front = tex.framed(front, 18, tex.palette(marks)[0])
        front[60:150, 120:480] = colour
        front = tex.text_lines(rng, front, (0.24, 0.17, 0.76, 0.36), 2, tuple(tex.palette(marks)[1]))
        skin = painted(name, tex.mottle(rng, front, 0.08), 0.55)
        edges = tex.stripes(64, 64, tex.palette("efe6d0 d8cdb2"), np.linspace(0, 1, 24)[1:]).transpose(1, 0, 2)
        paper = painted(f"{name}.pages", edges, 0.9)
        ident, board = b.item(name, "book"), 0.0025
        x, y, z = at
        sheet = geo.box((size[0], size[1], board), atlas=False)
        b.add(ident, sheet, skin, at, turn)
        b.add(ident, sheet, skin, (x, y, z + size[2] - board), turn)
        spine = geo.box((size[0], board, size[2]), atlas=False).moved((0, -size[1] / 2 + board / 2, 0))
        b.add(ident, spine, skin, at, turn)
        block = geo.box((size[0] - 0.01, size[1] - 0.007, size[2] - 2 * board), atlas=False)
        b.add(ident, block, paper, (x, y, z + board), turn)


def _fruit_bowl(b: Builder) -> None:
    rng = b.rng("bowl")
    hollow, wall, brim, middle = 0.135, 0.006, 0.085, np.array([-0.03, 0.12])
    polar = np.linspace(0.0, np.arccos(1 - brim / hollow), 24)
    centre = hollow + wall  # height of the hollow sphere's centre above the foot
    inner = [(hollow * np.sin(a), centre - hollow * np.cos(a)) for a in polar]
    outer = [((hollow + wall) * np.sin(a), centre - (hollow + wall) * np.cos(a)) for a in polar]
    foot = [(0.0, 0.0), (0.045, 0.0), (0.047, 0.01)]
    outer = foot + [p for p in outer if p[0] > 0.05]
    glaze = tex.flat(400, 900, tex.hex_colour("efe7da"))
    glaze = tex.scatter(rng, glaze, 170, tex.palette("3d5a80 ee6c4d 98c1d9 293241"), (8, 22), (0, 1, 2, 6))
    at = (*middle, TOP)
    b.add(b.item("bowl", "bowl"), geo.lathe(outer + inner[::-1], 96), painted("bowl", glaze, 0.5), at)
    # Three equal balls that touch each other and the hollow: their middles lie on a circle about the axis.
    radius = 0.0375
    ring = 2 * radius / np.sqrt(3)
    drop = np.sqrt((hollow - radius) ** 2 - ring**2)
    fruits = [("apple_1", "apple", "b3202a", "e2a03a", 0.3), ("apple_2", "apple", "8fb339", "d9d06a", 0.3)]
    fruits.append(("orange", "orange", "ee8a1d", "f2a43c", 0.03))
    for k, (name, kind, skin, blush, dimple) in enumerate(fruits):
        angle = np.radians(40 + 120 * k)
        place = (middle[0] + ring * np.cos(angle), middle[1] + ring * np.sin(angle), TOP + centre - drop)
        rng = b.rng(name)
        mix = np.clip(1.9 - 2.4 * tex.fbm(rng, 256, 512, 3, 24, 4), 0.15, 1)[..., None]
        coat = tex.flat(256, 512, tex.hex_colour(skin)) * mix + tex.flat(256, 512, tex.hex_colour(blush)) * (1 - mix)
        coat = tex.scatter(rng, coat, 160, tex.palette(blush), (1.0, 2.2), (0,))
        ident = b.item(name, kind)
        b.add(ident, geo.ball(radius, dimple), painted(name, coat, 0.45), place, 70 * k, ("x", 18.0 + 9 * k))


def _banana(b: Builder) -> None:
    turn = np.linspace(-0.72, 0.72, 33)
    path = np.stack([0.125 * np.sin(turn), 0.125 * np.cos(turn) - 0.125, 0 * turn], -1)
    u = np.linspace(-1, 1, len(turn))
    radius = 0.0185 * np.clip(1 - np.abs(u) ** 4.5, 0, 1) ** 0.55 + 0.0045
    rng = b.rng("banana")
    peel = tex.mottle(rng, tex.flat(400, 120, tex.hex_colour("ecc83a")), 0.12)
    peel = tex.scatter(rng, peel, 90, tex.palette("6b4423 8a5a2b"), (1.5, 5), (0, 5))
    peel[:16] = peel[-22:] = tex.hex_colour("5a4326")
    skin = painted("banana", peel, 0.6)
    b.add(b.item("banana", "banana"), geo.tube(path, radius), skin, (-0.03, 0.003, TOP + 0.0229), 172)


def _oil_bottle(b: Builder) -> None:
    rng = b.rng("bottle")
    body = [(0.0, 0.0), (0.034, 0.0), (0.037, 0.004), (0.037, 0.15)]
    body += geo.smooth_profile([(0.037, 0.15), (0.033, 0.185), (0.016, 0.215), (0.014, 0.25)])[1:]
    body += [(0.0, 0.25)]
    coat = tex.mottle(rng, tex.flat(600, 700, tex.hex_colour("3c5a2e")), 0.2)
    top, bottom = 250, 470
    label = tex.scatter(
        rng,
        tex.flat(bottom - top, 700, tex.hex_colour("f3ead2")),
        40,
        tex.palette("7a8b3a c0392b d9a441"),
        (8, 22),
        (6, 0, 2),
    )
    label = tex.text_lines(rng, label, (0.05, 0.35, 0.95, 0.7), 4, (0.25, 0.16, 0.1))
    coat[top:bottom] = tex.framed(label, 8, tex.hex_colour("c9a227"))
    ident, at = b.item("bottle", "bottle"), (-0.515, 0.0499, TOP)
    b.add(ident, geo.lathe(body), painted("bottle", coat, 0.4), at, 20)
    cap = [(0.0145, 0.225), (0.0175, 0.225), (0.0175, 0.258), (0.0165, 0.26), (0.0, 0.26)]
    ribs = tex.stripes(64, 512, tex.palette("c0282d 8e1b20"), np.linspace(0, 1, 48)[1:])
    b.add(b.item("bottle.cap", "cap", parent=ident), geo.lathe(cap), painted("bottle.cap", ribs, 0.5), at)


def _pot(b: Builder) -> None:
    rng = b.rng("pot")
    wall = [(0.0, 0.0), (0.088, 0.0), (0.098, 0.008), (0.1, 0.02), (0.1, 0.105), (0.104, 0.11)]
    wall += [(0.098, 0.112), (0.097, 0.02), (0.0, 0.012)]
    enamel = tex.mottle(rng, tex.flat(360, 900, tex.hex_colour("d8572a")), 0.15)
    enamel = tex.scatter(rng, enamel, 90, tex.palette("f7e7ce f0a868 7d2b12"), (9, 22), (2, 0, 1))
    ident, at = b.item("pot", "pot"), (-0.52, 0.187, TOP)
    coat = painted("pot", enamel, 0.45)
    b.add(ident, geo.lathe(wall, 96), coat, at)
    bow = np.linspace(-0.5, 0.5, 21) * np.pi
    ear = np.stack([0.097 + 0.03 * np.cos(bow), 0.034 * np.sin(bow), 0 * bow + 0.085], -1)
    grip = mottled(b, "pot_ears", "5a2411", 0.2)
    for turn in (25, 205):
        b.add(ident, geo.tube(ear, 0.006), grip, at, turn)
    dome = [(0.101, 0.112), (0.103, 0.116), (0.1, 0.12)]
    dome += geo.smooth_profile([(0.1, 0.12), (0.08, 0.135), (0.045, 0.146), (0.012, 0.15)])
    dome += geo.smooth_profile([(0.011, 0.158), (0.017, 0.166), (0.02, 0.174), (0.014, 0.182), (0.0, 0.184)])
    lid = tex.mottle(rng, tex.flat(300, 700, tex.hex_colour("e9d8a6")), 0.15)
    lid = tex.scatter(rng, lid, 40, tex.palette("d8572a 94481f"), (8, 16), (0, 2, 1))
    lid[:110] = tex.hex_colour("3b2a20")
    b.add(b.item("pot.lid", "lid", parent=ident), geo.lathe(dome, 96), painted("pot.lid", lid, 0.45), at)


def _plant(b: Builder) -> None:
    rng = b.rng("plant")
    wall = [
        (0.0, 0.0),
        (0.052, 0.0),
        (0.068, 0.085),
        (0.076, 0.086),
        (0.078, 0.115),
        (0.071, 0.116),
        (0.069, 0.098),
    ]
    wall += [(0.0, 0.1)]
    clay = tex.mottle(rng, tex.flat(300, 700, tex.hex_colour("bf6f4a")), 0.2, 20)
    clay[60:150] = tex.scatter(rng, clay[60:150], 60, tex.palette("f4e8d0 2f5d62"), (8, 18), (3, 4, 1))
    clay[:34] = tex.mottle(rng, tex.flat(34, 700, tex.hex_colour("4a3425")), 0.4, 12)
    ident, at = b.item("plant", "plant_pot"), (0.55, 0.33, TOP)
    b.add(ident, geo.lathe(wall), painted("plant", clay, 0.85), at)
    blades = []
    for k in range(22):
        length, azimuth = rng.uniform(0.07, 0.16), np.radians(k * 137.5 + rng.uniform(-12, 12))
        rise = rng.uniform(0.12, 0.22) * (1.5 if k > 15 else 1.0)
        length *= 0.55 if k > 15 else 1.0
        blades.append(geo.leaf(length, rng.uniform(0.028, 0.042), rise, rng.uniform(0.02, 0.11), azimuth))
    green = tex.mottle(rng, tex.flat(400, 100, tex.hex_colour("4f8f3a")), 0.35, 30)
    green[:, 46:54] = tex.hex_colour("a9cf6e")
    leaves = b.item("plant.leaves", "leaves", parent=ident)
    b.add(leaves, geo.merged(*blades), painted("plant.leaves", green, 0.6), (at[0], at[1], TOP + 0.098))


def _pen(b: Builder) -> None:
    path = np.stack([np.linspace(-0.07, 0.07, 29), np.zeros(29), np.zeros(29)], -1)
    radius = np.full(29, 0.0052)
    radius[:3] = [0.001, 0.0025, 0.0042]
    ink = tex.flat(256, 32, tex.hex_colour("1b1b3a"))
    ink[150:] = tex.hex_colour("d7263d")
    ink[140:150] = tex.hex_colour("e8e8e8")
    b.add(
        b.item("pen", "pen"),
        geo.tube(path, radius),
        painted("pen", ink, 0.4),
        (-0.16, -0.33, TOP + 0.0082),
        28,
    )


def _library_models(b: Builder) -> None:
    b.model(b.item("scissors", "scissors"), "cissors_swap", 0.018, (-0.55, -0.22, TOP), 65)
    b.model(b.item("teddy_bear", "teddy"), "teddyBear", 0.26, (0.24, 0.28, TOP), 15)
    b.model(b.item("cupcake", "cupcake"), "cupcake", 0.085, (0.42, -0.3, TOP), 0)


def sky(strength: float, picture: str) -> None:
    """Light the scene by an HDRI of Blender's, which shows behind it too."""
    world = bpy.data.worlds.new("world")
    bpy.context.scene.world = world
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    source = nodes.new("ShaderNodeTexEnvironment")
    lights = Path(bpy.utils.system_resource("DATAFILES")) / "studiolights" / "world"
    source.image = bpy.data.images.load(str(lights / picture))
    links.new(source.outputs["Color"], nodes["Background"].inputs["Color"])
    nodes["Background"].inputs["Strength"].default_value = strength


def build_light() -> None:
    """Light the room from above: the open ceiling lets an interior's HDRI in, a panel adds soft shadows."""
    sky(0.5, "interior.exr")
    for name, at, size, power, aim in [
        ("panel", (-0.5, -0.4, 2.55), 1.6, 27.0, (0, 0, 0.7)),
        ("fill", (1.3, 1.2, 2.5), 1.2, 13.0, (0, 0, 0.7)),
    ]:
        light = bpy.data.lights.new(name, "AREA")
        light.size, light.energy = size, power
        lamp = bpy.data.objects.new(name, light)
        lamp.location = at
        lamp.rotation_mode = "QUATERNION"
        lamp.rotation_quaternion = Vector(np.subtract(aim, at)).to_track_quat("-Z", "Y")
        bpy.context.scene.collection.objects.link(lamp)


def build_demo(b: Builder) -> None:
    """Fill the bundled scene."""
    build_room(b)
    build_table(b)
    build_surroundings(b)
    build_things(b)
    build_light()


def build_scene(seed: int, furniture: Path, fill: Callable[[Builder], None]) -> list[Item]:
    """Start an empty Blender scene, fill it and give its instances; furniture: BlendSwap-CC-0.sh3f."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(furniture) as archive:
            archive.extractall(folder)
        builder = Builder(seed, Path(folder) / "blendswap-cc-0")
        fill(builder)
        for image in bpy.data.images:
            if image.source == "FILE":
                image.pack()  # the unpacked library goes away with the folder
    bpy.context.view_layer.update()
    return builder.items
