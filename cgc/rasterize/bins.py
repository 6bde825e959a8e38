"""Which Gaussians meet which tile, in depth order: one radix sort by depth, then a stable fill of the tiles.

Notation: V visible Gaussians in depth order (a Gaussian's place in it is its rank); T tiles of TILE x TILE pixels;
a pair is one (Gaussian, tile) that meet; pairs are numbered by rank, so a Gaussian's pairs are consecutive; a slot is
a pair's place in the lists of the tiles. A span is the tiles of one tile row that a Gaussian meets.
A band is a range of tile rows that is listed at one time, so that the pairs of a picture need not all be in memory.
A record holds what the pixel kernels read of a Gaussian, in base-2 logarithms and with the square completed:

    log2 alpha(dx, dy) = log2_opacity - A u^2 - G dy^2,   u = dx + k dy,   A = log2(e) a / 2,   G = log2(e) g / 2

with (a, k, g) as in project.py. {alpha >= 1/255} is the ellipse A u^2 + G dy^2 <= level;
it is cut with the tiles exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cgc.kernels import kernel, spread

TILE = 16
RECORD = 8  # mean x, mean y, A, k, G, log2_opacity, level, 1 / A
CHUNKS = 32  # ranks are filled in this many fixed pieces
LOG2E = 1.4426950408889634


class Spans(NamedTuple):
    """The visible Gaussians of a picture and the tiles they meet, a span a tile row; see the module's notation."""

    order: np.ndarray  # [V] int32: rank -> Gaussian
    records: np.ndarray  # [V * RECORD] float32
    top: np.ndarray  # [V] int32: rank -> its first tile row
    first_span: np.ndarray  # [V + 1] int64: rank -> its first span
    columns: np.ndarray  # [spans, 2] int32: first and last tile (last < first: none)
    pairs_of_rows: np.ndarray  # [tile rows] int64
    tiles_x: int


class Bins(NamedTuple):
    """The lists of the tiles of a band; see the module's notation."""

    order: np.ndarray  # [V] int32: rank -> Gaussian
    records: np.ndarray  # [V * RECORD] float32
    first_pair: np.ndarray  # [V + 1] int64: rank -> its first pair
    pair_slot: np.ndarray  # [pairs] int32: pair -> slot; empty unless asked for
    tile_start: np.ndarray  # [T + 1] int64: tile -> its first slot
    slot_rank: np.ndarray  # [pairs] int32: slot -> rank, front to back within a tile
    tiles_x: int
    first_row: int  # the band's first tile row


@kernel
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


@kernel
def _make_records(worker, workers, order, means2d, ellipses, opacities, tiles_y, records, top, rows):
    """Fill the records, and each rank's first tile row and number of tile rows (in rows[rank + 1])."""
    count = order.shape[0]
    for r in range(worker * count // workers, (worker + 1) * count // workers):
        i = order[r]
        A, G = 0.5 * LOG2E * ellipses[i, 0], 0.5 * LOG2E * ellipses[i, 2]
        log2_opacity = math.log2(opacities[i])
        at = r * RECORD
        records[at], records[at + 1], records[at + 2] = means2d[i, 0], means2d[i, 1], A
        records[at + 3], records[at + 4], records[at + 5] = ellipses[i, 1], G, log2_opacity
        records[at + 6] = log2_opacity + math.log2(255.0) + 1e-4  # level, a hair wide: pixels decide exactly
        records[at + 7] = 1.0 / A
        first, last = _tile_rows(records, at, tiles_y)
        top[r], rows[r + 1] = first, max(last - first + 1, 0)


@kernel
def _tile_rows(records, at, tiles_y):
    """Return the first and last tile row that the ellipse meets (last < first: none)."""
    reach = math.sqrt(max(records[at + 6], 0.0) / records[at + 4]) + 0.01
    first = math.ceil((records[at + 1] - reach - (TILE - 0.5)) / TILE)
    last = math.floor((records[at + 1] + reach - 0.5) / TILE)
    return int(max(first, 0)), int(min(last, tiles_y - 1))


@kernel
def _tile_columns(records, at, row, tiles_x):
    """Return the first and last tile of tile row `row` that the ellipse meets (last < first: none)."""
    mx, my, A = records[at], records[at + 1], records[at + 2]
    k, G, level = records[at + 3], records[at + 4], max(records[at + 6], 0.0)
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


@kernel
def _find_spans(worker, workers, records, top, first_span, tiles_x, tiles_y, columns):
    """Fill the spans; return the pairs of each tile row, [tile rows] int64, of this worker's share."""
    pairs = np.zeros(tiles_y, np.int64)
    count = top.shape[0]
    for r in range(worker * count // workers, (worker + 1) * count // workers):
        for span in range(first_span[r], first_span[r + 1]):
            row = top[r] + span - first_span[r]
            first, last = _tile_columns(records, r * RECORD, row, tiles_x)
            columns[span, 0], columns[span, 1] = first, last
            pairs[row] += max(last - first + 1, 0)
    return pairs


@kernel
def _count_pairs(worker, workers, top, first_span, columns, first_row, last_row, tiles_x, per_rank, per_chunk_tile):
    """Count the pairs in tile rows first_row to last_row - 1, of each rank and of each chunk's tiles."""
    count = top.shape[0]
    for chunk in range(worker, CHUNKS, workers):
        mine = per_chunk_tile[chunk]
        for r in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            begin = first_span[r]
            pairs = 0
            for row in range(max(top[r], first_row), min(top[r] + first_span[r + 1] - begin, last_row)):
                span = begin + row - top[r]
                base = (row - first_row) * tiles_x
                for column in range(columns[span, 0], columns[span, 1] + 1):
                    mine[base + column] += 1
                pairs += max(columns[span, 1] - columns[span, 0] + 1, 0)
            per_rank[r] = pairs


@kernel
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


@kernel
def _fill(
    worker, workers, top, first_span, columns, first_row, last_row, tiles_x, first_pair, next_slot, slot_rank, pair_slot
):
    """Fill slot_rank, and pair_slot where it has room for the pairs."""
    count, numbered = top.shape[0], pair_slot.shape[0] > 0
    for chunk in range(worker, CHUNKS, workers):
        mine = next_slot[chunk]
        for r in range(chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS):
            begin, pair = first_span[r], first_pair[r]
            for row in range(max(top[r], first_row), min(top[r] + first_span[r + 1] - begin, last_row)):
                span = begin + row - top[r]
                base = (row - first_row) * tiles_x
                for column in range(columns[span, 0], columns[span, 1] + 1):
                    slot = mine[base + column]
                    mine[base + column] = slot + 1
                    slot_rank[slot] = r
                    if numbered:
                        pair_slot[pair] = slot
                        pair += 1


def find_spans(means2d, ellipses, opacities, depths, radii, width: int, height: int) -> Spans:
    """Sort the visible Gaussians by depth and find the tiles they meet; arrays as `project` fills them."""
    order = _sort_by_depth(depths, radii)
    count = len(order)
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    records = np.empty(count * RECORD, np.float32)
    top, rows = np.empty(count, np.int32), np.zeros(count + 1, np.int64)
    spread(_make_records, order, means2d, ellipses, opacities, tiles_y, records, top, rows)
    first_span = np.cumsum(rows)
    columns = np.empty((first_span[-1], 2), np.int32)
    pairs = spread(_find_spans, records, top, first_span, tiles_x, tiles_y, columns)
    return Spans(order, records, top, first_span, columns, np.sum(pairs, 0), tiles_x)


def bands(spans: Spans, most_pairs: int) -> list[tuple[int, int]]:
    """Cut the tile rows into bands (first, end) of at most `most_pairs` pairs, where one row alone has no more."""
    cuts, pairs = [0], 0
    for row, more in enumerate(spans.pairs_of_rows):
        if pairs and pairs + more > most_pairs:
            cuts.append(row)
            pairs = 0
        pairs += int(more)
    return list(zip(cuts, [*cuts[1:], len(spans.pairs_of_rows)]))


def bin_gaussians(spans: Spans, first_row: int, end_row: int, *, numbered: bool = False) -> Bins:
    """List the Gaussians of each tile in tile rows first_row to end_row - 1, front to back.

    numbered: say also which pairs are whose, as the gradient wants to know.
    """
    tiles = (end_row - first_row) * spans.tiles_x
    count, lists = len(spans.order), (spans.top, spans.first_span, spans.columns, first_row, end_row, spans.tiles_x)
    per_rank, per_chunk_tile = np.zeros(count, np.int64), np.zeros((CHUNKS, tiles), np.int64)
    spread(_count_pairs, *lists, per_rank, per_chunk_tile)
    first_pair, tile_start = np.zeros(count + 1, np.int64), np.zeros(tiles + 1, np.int64)
    _starts(per_rank, per_chunk_tile, first_pair, tile_start)
    pairs = int(first_pair[-1])
    slot_rank, pair_slot = np.empty(pairs, np.int32), np.empty(pairs if numbered else 0, np.int32)
    spread(_fill, *lists, first_pair, per_chunk_tile, slot_rank, pair_slot)
    lists = (first_pair, pair_slot, tile_start, slot_rank)
    return Bins(spans.order, spans.records, *lists, spans.tiles_x, first_row)
