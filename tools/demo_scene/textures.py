"""Paint the demo scene's textures with numpy: (H, W, 3) float32 sRGB images in 0..1, row 0 on top.

Everything is scattered at random instead of tiled, because a repeating pattern gives structure from motion
wrong but self-consistent matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Colour = tuple[float, float, float]


def hex_colour(code: str) -> Colour:
    """Read 'rrggbb' as sRGB numbers in 0..1."""
    red, green, blue = (int(code[k : k + 2], 16) / 255 for k in (0, 2, 4))
    return red, green, blue


def palette(codes: str) -> np.ndarray:
    """Read blank-separated 'rrggbb' codes as an (N, 3) array."""
    return np.array([hex_colour(code) for code in codes.split()], np.float32)


def flat(height: int, width: int, colour: Colour | np.ndarray) -> np.ndarray:
    """Make an image of one colour."""
    return np.broadcast_to(np.asarray(colour, np.float32), (height, width, 3)).copy()


def value_noise(rng: np.random.Generator, height: int, width: int, rows: int, cols: int) -> np.ndarray:
    """Interpolate a random (rows, cols) grid smoothly to (height, width), values in 0..1."""
    grid = rng.random((rows + 1, cols + 1), np.float32)

    def axis(length: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        at = (np.arange(length, dtype=np.float32) + 0.5) * cells / length
        low = np.minimum(at.astype(int), cells - 1)
        step = at - low
        return low, step * step * (3 - 2 * step)

    y, wy = axis(height, rows)
    x, wx = axis(width, cols)
    lines = grid[y] * (1 - wy[:, None]) + grid[y + 1] * wy[:, None]
    return lines[:, x] * (1 - wx) + lines[:, x + 1] * wx


def fbm(rng: np.random.Generator, height: int, width: int, rows: int, cols: int, octaves: int = 4) -> np.ndarray:
    """Sum octaves of value noise to a cloudy (height, width) field in 0..1."""
    total = np.zeros((height, width), np.float32)
    weight = 0.0
    for k in range(octaves):
        r, c = min(rows << k, height), min(cols << k, width)
        total += value_noise(rng, height, width, r, c) * 0.5**k
        weight += 0.5**k
    return total / weight


def mottle(rng: np.random.Generator, image: np.ndarray, amount: float, cells: int = 24) -> np.ndarray:
    """Darken and lighten an image by cloudy noise of +-amount."""
    height, width = image.shape[:2]
    cols = max(1, cells * width // height)
    field = fbm(rng, height, width, cells, cols, 4)
    return np.clip(image * (1 + amount * (field - 0.5)[..., None] * 2), 0, 1)


def planks(rng: np.random.Generator, height: int, width: int, rows: int, colours: np.ndarray) -> np.ndarray:
    """Lay boards along x in `rows` rows with grain, knots, random joints and dark gaps."""
    image = np.empty((height, width, 3), np.float32)
    edges = np.linspace(0, height, rows + 1).astype(int)
    for top, bottom in pairwise(edges):
        cuts = [0, *np.sort(rng.uniform(0.12, 0.88, 2) * width).astype(int), width]
        for left, right in pairwise(cuts):
            if right <= left:
                continue
            image[top:bottom, left:right] = _board(rng, bottom - top, right - left, colours)
            image[top:bottom, left : left + 3] *= 0.45
        image[top : top + 3] *= 0.45
    return np.clip(image, 0, 1)


def _board(rng: np.random.Generator, height: int, width: int, colours: np.ndarray) -> np.ndarray:
    """Paint one board: fine grain along x, bent around a knot or two."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    bend = fbm(rng, height, width, 2, max(2, width // 220), 3) * height * 0.9
    for _ in range(rng.integers(1, 4)):
        cx, cy, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(6, 16)
        bend += 3 * size * np.exp(-((x - cx) ** 2 / 9 + (y - cy) ** 2) / size**2)
    rings = 0.5 + 0.5 * np.sin((y + bend) * rng.uniform(0.35, 0.6))
    fine = fbm(rng, height, width, max(4, height // 3), max(2, width // 60), 2)
    base = colours[rng.integers(len(colours))] * rng.uniform(0.85, 1.12)
    return base * (0.72 + 0.26 * rings + 0.26 * fine)[..., None]


def bricks(rng: np.random.Generator, height: int, width: int, rows: int, colours: np.ndarray) -> np.ndarray:
    """Paint a running-bond brick wall with a colour per brick."""
    image = mottle(rng, flat(height, width, (0.78, 0.75, 0.70)), 0.15, 60)
    step = height / rows
    for row in range(rows):
        x = -rng.uniform(0.2, 1.0) * step * 2
        while x < width:
            length = step * rng.uniform(1.7, 2.9)
            top, bottom = int(row * step) + 3, int((row + 1) * step) - 2
            left, right = max(0, int(x) + 3), min(width, int(x + length) - 2)
            if right > left:
                colour = colours[rng.integers(len(colours))] * rng.uniform(0.85, 1.1)
                patch = flat(bottom - top, right - left, np.clip(colour, 0, 1))
                image[top:bottom, left:right] = mottle(rng, patch, 0.25, 5)
            x += length
    return image


def stripes(height: int, width: int, colours: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Paint stripes across x with the given right edges (0..1, ascending)."""
    index = np.searchsorted(edges, (np.arange(width) + 0.5) / width)
    row = colours[index % len(colours)]
    return np.broadcast_to(row, (height, width, 3)).copy()


def checks(height: int, width: int, rows: int, cols: int, colours: np.ndarray) -> np.ndarray:
    """Paint a chequered cloth with the colours in turn."""
    y = (np.arange(height) * rows // height)[:, None]
    x = (np.arange(width) * cols // width)[None]
    return colours[(x + y) % len(colours)].astype(np.float32)


def _shape(kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Give the signed distance-like field (negative inside) of a shape of radius about 1."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    if kind == 0:
        return radius - 0.9
    if kind == 1:
        return np.abs(radius - 0.75) - 0.18
    if kind == 2:
        return radius - 0.65 - 0.3 * np.cos(5 * angle)
    if kind == 3:
        return np.maximum(np.abs(u), np.abs(v)) - 0.8
    if kind == 4:
        return radius * np.cos((angle % (2 * np.pi / 3)) - np.pi / 3) - 0.5
    if kind == 5:
        return np.maximum(np.abs(v) - 0.16, np.abs(u) - 1.0)
    return np.hypot(u / 1.1, np.abs(v) + 0.45) - 0.8  # a leaf: the common part of two discs


def scatter(
    rng: np.random.Generator,
    image: np.ndarray,
    count: int,
    colours: np.ndarray,
    sizes: tuple[float, float],
    kinds: Sequence[int] = (0, 1, 2, 3, 4, 5, 6),
) -> np.ndarray:
    """Stamp `count` random shapes of radius in `sizes` (pixels) on a copy of the image."""
    image = image.copy()
    height, width = image.shape[:2]
    for _ in range(count):
        cx, cy, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(*sizes)
        turn, kind = rng.uniform(0, 2 * np.pi), int(rng.choice(kinds))
        stamp(image, (cx, cy), size, turn, kind, colours[rng.integers(len(colours))])
    return image


def stamp(
    image: np.ndarray, centre: tuple[float, float], size: float, turn: float, kind: int, colour: np.ndarray
) -> None:
    """Draw one anti-aliased shape into the image in place."""
    height, width = image.shape[:2]
    cx, cy = centre
    reach = int(size * 1.4) + 2
    top, bottom = max(0, int(cy) - reach), min(height, int(cy) + reach + 1)
    left, right = max(0, int(cx) - reach), min(width, int(cx) + reach + 1)
    if bottom <= top or right <= left:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    du, dv = (x - cx) / size, (y - cy) / size
    u, v = du * np.cos(turn) + dv * np.sin(turn), dv * np.cos(turn) - du * np.sin(turn)
    cover = np.clip(0.5 - _shape(kind, u, v) * size, 0, 1)[..., None]
    image[top:bottom, left:right] += cover * (np.asarray(colour) - image[top:bottom, left:right])


def framed(image: np.ndarray, border: int, colour: Colour) -> np.ndarray:
    """Paint a border of one colour around the image."""
    image = image.copy()
    for side in (np.s_[:border], np.s_[-border:], np.s_[:, :border], np.s_[:, -border:]):
        image[side] = colour
    return image


def landscape(rng: np.random.Generator, height: int, width: int, sky: np.ndarray, hills: np.ndarray) -> np.ndarray:
    """Paint a poster: a sun over ranges of hills (sky and hills: two or more colours each)."""
    fade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image = np.broadcast_to(sky[0] * (1 - fade) + sky[1] * fade, (height, width, 3)).copy()
    stamp(image, (width * rng.uniform(0.3, 0.7), height * 0.28), width * 0.13, 0, 0, np.array([1, 0.93, 0.7]))
    rows = np.arange(height)[:, None]
    for k, colour in enumerate(hills):
        crest = height * (0.38 + 0.6 * k / len(hills))
        crest = crest + (fbm(rng, 1, width, 1, 4 + 2 * k, 5)[0] - 0.5) * height * 0.3
        shade = mottle(rng, flat(height, width, colour), 0.3, 40)
        image = np.where((rows > crest[None])[..., None], shade, image)
    return framed(image, width // 24, (0.95, 0.94, 0.9))


def mosaic(rng: np.random.Generator, height: int, width: int, cells: int, colours: np.ndarray) -> np.ndarray:
    """Paint Voronoi cells with dark joints."""
    points = rng.random((cells, 2)).astype(np.float32) * (width, height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    first = np.full((height, width), np.inf, np.float32)
    second, owner = first.copy(), np.zeros((height, width), int)
    for k, (px, py) in enumerate(points):
        distance = np.hypot(x - px, y - py)
        nearer = distance < first
        second = np.where(nearer, first, np.minimum(second, distance))
        owner[nearer] = k
        first = np.minimum(first, distance)
    image = colours[rng.integers(len(colours), size=cells)][owner]
    return np.where((second - first < width / 150)[..., None], 0.15, image).astype(np.float32)


def text_lines(
    rng: np.random.Generator,
    image: np.ndarray,
    box: tuple[float, float, float, float],
    rows: int,
    colour: Colour,
) -> np.ndarray:
    """Fill box (left, top, right, bottom in 0..1) with rows of bars that look like small print."""
    image = image.copy()
    height, width = image.shape[:2]
    step = (box[3] - box[1]) * height / rows
    for row in range(rows):
        x, top = box[0] * width, int(box[1] * height + row * step)
        while x < box[2] * width:
            word = rng.uniform(0.02, 0.09) * width
            end = min(x + word, box[2] * width)
            image[top : top + max(1, int(step * 0.5)), int(x) : int(end)] = colour
            x += word + 0.018 * width
    return image
