"""Which Gaussians meet which tile, in depth order: one radix sort by depth, then a stable fill of the tiles.

Notation: V visible Gaussians in depth order (a Gaussian's place in it is its rank); T tiles of TILE x TILE pixels;
a pair is one (Gaussian, tile) that meet; pairs are numbered by rank, so a Gaussian's pairs are consecutive.
A record holds what the pixel kernels read of a Gaussian, in base-2 logarithms and with the square completed:

    log2 alpha(dx, dy) = log2_opacity - A u^2 - G dy^2,   u = dx + k dy,   A = log2(e) a / 2,   G = log2(e) g / 2

with (a, k, g) as in project.py. {alpha >= 1/255} is the ellipse A u^2 + G dy^2 <= level;
it is cut with the tiles exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

TILE = 16
RECORD = 8  # mean x, mean y, A, k, G, log2_opacity, level, 1 / A
CHUNKS = 32  # ranks are filled in this many fixed pieces
_LOG2E = 1.4426950408889634


class Bins(NamedTuple):
    """Tile lists of one picture; see the module's notation."""

    order: np.ndarray  # [V] int32: rank -> Gaussian
    records: np.ndarray  # [V * RECORD] float32
    first_pair: np.ndarray  # [V + 1] int64: rank -> its first pair
    tile_start: np.ndarray  # [T + 1] int64: tile -> its first slot
    slot_rank: np.ndarray  # [pairs] int32: slot -> rank, front to back within a tile
    slot_pair: np.ndarray  # [pairs] int32: slot -> pair
    tiles_x: int
    tiles_y: int


@njit(cache=True, error_model="numpy")
def _sort_by_depth(depths, radii):
    """Return visible Gaussians from near to far, [V] int32; equal depths keep their order (LSD radix sort)."""
    n = depths.shape[0]
    count = 0
    for i in range(n):
        count += radii[i, 0] > 0
    ids, keys = np.empty(count, np.int32), np.empty(count, np.uint32)
    raw = depths.view(np.uint32)  # visible depths are positive, so their bits sort like their values
    j = 0
    for i in range(n):
        if radii[i, 0] > 0:
            ids[j], keys[j] = i, raw[i]
            j += 1
    other_ids, other_keys = np.empty_like(ids), np.empty_like(keys)
    for shift in (0, 11, 22):
        start = np.zeros(2049, np.int64)
        for j in range(count):
            start[((keys[j] >> np.uint32(shift)) & np.uint32(2047)) + 1] += 1
        for b in range(2048):
            start[b + 1] += start[b]
        for j in range(count):
            b = (keys[j] >> np.uint32(shift)) & np.uint32(2047)
            to = start[b]
            start[b] += 1
            other_ids[to], other_keys[to] = ids[j], keys[j]
        ids, other_ids = other_ids, ids
        keys, other_keys = other_keys, keys
    return ids


@njit(cache=True, error_model="numpy", parallel=True)
def _make_records(order, means2d, ellipses, opacities, records):
    for r in prange(order.shape[0]):
        i = order[r]
        A, G = 0.5 * _LOG2E * ellipses[i, 0], 0.5 * _LOG2E * ellipses[i, 2]
        log2_opacity = math.log2(opacities[i])
        at = r * RECORD
        records[at], records[at + 1], records[at + 2] = means2d[i, 0], means2d[i, 1], A
        records[at + 3], records[at + 4], records[at + 5] = ellipses[i, 1], G, log2_opacity
        records[at + 6] = log2_opacity + math.log2(255.0) + 1e-4  # level, a hair wide: pixels decide exactly
        records[at + 7] = 1.0 / A


@njit(cache=True, error_model="numpy")
def _tile_rows(record, tiles_y):
    """Return the first and last tile row that the ellipse meets (last < first: none)."""
    reach = math.sqrt(max(record[6], 0.0) / record[4]) + 0.01
    first = math.ceil((record[1] - reach - (TILE - 0.5)) / TILE)
    last = math.floor((record[1] + reach - 0.5) / TILE)
    return int(max(first, 0)), int(min(last, tiles_y - 1))


@njit(cache=True, error_model="numpy")
def _tile_columns(record, row, tiles_x):
    """Return the first and last tile of tile row `row` that the ellipse meets (last < first: none)."""
    mx, my, A, k, G, level = record[0], record[1], record[2], record[3], record[4], max(record[6], 0.0)
    low, high = row * TILE + 0.5 - my, row * TILE + TILE - 0.5 - my
    edge = math.sqrt(level / G)
    low, high = max(low, -edge), min(high, edge)
    if low > high:  # between pixel rows, or touched only through the slack: take the nearest height
        low = high = min(max(0.5 * (low + high), -edge), edge)
    width = math.sqrt(level / A + level * k * k / G)
    leftmost = k * level / (G * width) if width > 0.0 else 0.0
    dy = min(max(leftmost, low), high)
    left = mx - k * dy - math.sqrt(max(level - G * dy * dy, 0.0) / A) - 0.01
    dy = min(max(-leftmost, low), high)
    right = mx - k * dy + math.sqrt(max(level - G * dy * dy, 0.0) / A) + 0.01
    first = math.ceil((left - (TILE - 0.5)) / TILE)
    last = math.floor((right - 0.5) / TILE)
    return int(max(first, 0)), int(min(last, tiles_x - 1))


@njit(cache=True, error_model="numpy", parallel=True)
def _count_pairs(records, count, tiles_x, tiles_y, per_rank, per_chunk_tile):
    for chunk in prange(CHUNKS):
        mine = per_chunk_tile[chunk]
        for r in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            record = records[r * RECORD : (r + 1) * RECORD]
            first, last = _tile_rows(record, tiles_y)
            pairs = 0
            for row in range(first, last + 1):
                left, right = _tile_columns(record, row, tiles_x)
                for column in range(left, right + 1):
                    mine[row * tiles_x + column] += 1
                pairs += max(right - left + 1, 0)
            per_rank[r] = pairs


@njit(cache=True, error_model="numpy")
def _starts(per_rank, per_chunk_tile, first_pair, tile_start):
    """Turn counts into starts; per_chunk_tile becomes the slot where a chunk writes its next pair of a tile."""
    for r in range(per_rank.shape[0]):
        first_pair[r + 1] = first_pair[r] + per_rank[r]
    slot = np.int64(0)
    for t in range(per_chunk_tile.shape[1]):
        tile_start[t] = slot
        for chunk in range(CHUNKS):
            pairs = per_chunk_tile[chunk, t]
            per_chunk_tile[chunk, t] = slot
            slot += pairs
    tile_start[-1] = slot


@njit(cache=True, error_model="numpy", parallel=True)
def _fill(records, count, tiles_x, tiles_y, first_pair, next_slot, slot_rank, slot_pair):
    for chunk in prange(CHUNKS):
        mine = next_slot[chunk]
        for r in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            record = records[r * RECORD : (r + 1) * RECORD]
            first, last = _tile_rows(record, tiles_y)
            pair = first_pair[r]
            for row in range(first, last + 1):
                left, right = _tile_columns(record, row, tiles_x)
                for column in range(left, right + 1):
                    t = row * tiles_x + column
                    slot_rank[mine[t]], slot_pair[mine[t]] = r, pair
                    mine[t] += 1
                    pair += 1


def bin_gaussians(means2d, ellipses, opacities, depths, radii, width: int, height: int) -> Bins:
    """Sort the visible Gaussians by depth and list them tile by tile; arrays as `project` fills them."""
    order = _sort_by_depth(depths, radii)
    count = len(order)
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    records = np.empty(count * RECORD, np.float32)
    _make_records(order, means2d, ellipses, opacities, records)
    per_rank = np.zeros(count, np.int64)
    per_chunk_tile = np.zeros((CHUNKS, tiles_x * tiles_y), np.int64)
    _count_pairs(records, count, tiles_x, tiles_y, per_rank, per_chunk_tile)
    first_pair, tile_start = np.zeros(count + 1, np.int64), np.zeros(tiles_x * tiles_y + 1, np.int64)
    _starts(per_rank, per_chunk_tile, first_pair, tile_start)
    pairs = int(first_pair[-1])
    slot_rank, slot_pair = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
    _fill(records, count, tiles_x, tiles_y, first_pair, per_chunk_tile, slot_rank, slot_pair)
    return Bins(order, records, first_pair, tile_start, slot_rank, slot_pair, tiles_x, tiles_y)
