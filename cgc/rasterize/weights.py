"""The blending weights of chosen pixels: rows of the contribution matrix, in one pass over the tiles.

Notation as in blend.py. Pixels are taken eight at a time, a group, wherever they lie in their tile: asking for few
costs little more than projecting and sorting. A row is written once: counted and collected tile by tile, then copied
to its place in the CSR matrix. What a row leaves out (entries under a least weight, all but the heaviest) is summed
into its remainder. Entries of one group of Gaussians may be summed at once: a row then has an entry a group.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import numpy as np
from numba import float32 as f

from cgc.kernels import kernel
from cgc.rasterize.bins import RECORD, TILE
from cgc.rasterize.blend import (
    AHEAD,
    ALPHA_MAX,
    PIECES,
    POWER_MIN,
    STRIPS,
    T_MIN,
    fill_rows,
    find_strips,
    tile_at,
)
from cgc.rasterize.lanes import (
    bits,
    broadcast,
    exp2,
    fma,
    greater,
    greater_equal,
    iota,
    load,
    minimum,
    prefetch,
    select,
    splat,
    store,
)

CULLED_FROM = 3  # groups in a tile from which it pays to look first which strips a Gaussian meets


@kernel
def order_pixels(pixels, width, tiles_x, tiles, strip_start):
    """Return the pixels' rows [P] int64 sorted by tile and strip; strip_start [T * STRIPS + 1] holds zeros on entry."""
    keys = np.empty(pixels.shape[0], np.int32)
    for row in range(pixels.shape[0]):
        x, y = pixels[row] % width, pixels[row] // width
        tile = (y // TILE) * tiles_x + x // TILE
        keys[row] = tile * STRIPS + (y % TILE) + TILE * ((x % TILE) // 8)
        strip_start[keys[row] + 1] += 1
    for key in range(tiles * STRIPS):
        strip_start[key + 1] += strip_start[key]
    order = np.empty(pixels.shape[0], np.int64)
    for row in range(pixels.shape[0]):
        order[strip_start[keys[row]]] = row
        strip_start[keys[row]] += 1
    for key in range(tiles * STRIPS, 0, -1):  # each start has moved on to the next key's
        strip_start[key] = strip_start[key - 1]
    strip_start[0] = 0
    return order


@kernel
def _group_strips(x, y, lanes):
    """Return the strips that the group's pixels, at x, y in their tile, lie in, one bit each."""
    strips = np.uint64(0)
    for lane in range(lanes):
        strips |= np.uint64(1) << np.uint64(y[lane] + TILE * (x[lane] // 8))
    return strips


@kernel
def _keep_heaviest(ranks, weights, first, n, most, largest):
    """Keep the `most` heaviest of n entries from `first` on, in their order; return the weight of the others.

    Of equal weights the nearer stay. `largest` [most] is scratch.
    """
    count = 0
    for e in range(first, first + n):  # insertion into a list sorted by falling weight
        place = count
        while place > 0 and largest[place - 1] < weights[e]:
            place -= 1
        if place < most:
            count = min(count + 1, most)
            for k in range(count - 1, place, -1):
                largest[k] = largest[k - 1]
            largest[place] = weights[e]
    least, equal = largest[most - 1], most
    for k in range(most):
        equal -= largest[k] > least
    to, left_out = first, 0.0
    for e in range(first, first + n):
        if weights[e] > least or (weights[e] == least and equal > 0):
            equal -= weights[e] == least
            ranks[to], weights[to] = ranks[e], weights[e]
            to += 1
        else:
            left_out += weights[e]
    return left_out


@kernel
def _grown(entries, used, wanted):
    """Return the array with room for `wanted` more than `used` entries."""
    if used + wanted <= entries.shape[0]:
        return entries
    more = np.empty(max(entries.shape[0] + entries.shape[0] // 2, used + wanted), entries.dtype)
    for e in range(used):
        more[e] = entries[e]
    return more


@kernel
def _weigh_group(records, slot_rank, begin, length, met, strips, x0, y0, xs, ys, lanes, powers, weights, slots):
    """Write the weights of a group's eight pixels, front to back, and the slots they are of; return how many.

    weights [8 * length], one Lanes a slot; slots [length]; powers [8 * length] is scratch; xs, ys are in the tile.
    """
    column, y = load(xs, 0), load(ys, 0) + splat(f(y0) + f(0.5))
    left = splat(f(x0) + f(0.5))
    met_some = 0
    for s in range(length):
        slots[met_some] = s
        met_some += met[s] & strips != 0
    n = 0
    for q in range(met_some):
        s = slots[q]
        at = slot_rank[begin + s] * RECORD
        dy = y - broadcast(records, at + 1)
        u = column + fma(broadcast(records, at + 3), dy, left - broadcast(records, at))
        power = broadcast(records, at + 5) - broadcast(records, at + 4) * dy * dy
        power = power - broadcast(records, at + 2) * u * u
        store(powers, 8 * n, power)
        slots[n] = s
        n += bits(greater_equal(power, splat(f(POWER_MIN)))) != 0
    T = select(greater(splat(f(lanes)), iota()), splat(f(1.0)), splat(f(0.0)))
    for q in range(n):
        power = load(powers, 8 * q)
        alpha = minimum(exp2(power), splat(f(ALPHA_MAX)))
        w = select(greater_equal(power, splat(f(POWER_MIN))), alpha, splat(f(0.0))) * T
        after = T - w
        goes_on = greater(after, splat(f(T_MIN)))
        store(weights, 8 * q, select(goes_on, w, splat(f(0.0))))
        T = select(goes_on, after, splat(f(0.0)))
        if bits(goes_on) == 0:
            return q
    return n


@kernel
def _merge(rank_group, slot_rank, begin, slots, weights, n, places):
    """Sum n entries, one Lanes each, by the group of their Gaussian, in place; return how many groups there are.

    The slots become groups, in the order in which they are met. `places` [groups] is scratch that holds -1.
    """
    count = 0
    for q in range(n):  # what is written lies at or before what was read last
        group = rank_group[slot_rank[begin + slots[q]]]
        place = places[group]
        if place < 0:
            store(weights, 8 * count, load(weights, 8 * q))
            slots[count], places[group] = group, count
            count += 1
        else:
            store(weights, 8 * place, load(weights, 8 * place) + load(weights, 8 * q))
    for k in range(count):
        places[slots[k]] = -1
    return count


@kernel
def weights_of_tiles(
    worker, workers, records, slot_rank, tile_start, tiles_x, first_row, strip_start, pixel_order, width, pixels,
    min_weight, heaviest, rank_group, groups, most_entries, row_start, row_count, remainder,
):  # fmt: skip
    """Return ranks, weights and how many entries they hold, of the pixels in this worker's tiles.

    groups: how many there are, 0 for none; then rank_group [V] says whose a rank is, and groups are returned for ranks.

    row_start, row_count [P] say whose they are. heaviest: what a row keeps at most, 0 for all. Past `most_entries` it
    stops with a row_count of -1.
    """
    ranks, weights = np.empty(4096, np.int32), np.empty(4096, np.float32)
    used = 0
    xs, ys = np.empty(8, np.float32), np.empty(8, np.float32)
    x, y = np.empty(8, np.int64), np.empty(8, np.int64)
    powers, shifts, largest = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(heaviest, np.float32)
    places, met, slots = np.full(groups, -1, np.int32), np.empty(0, np.uint64), np.empty(0, np.int64)
    scratch, group_weights = np.empty(0, np.float32), np.empty(0, np.float32)
    for piece in range(worker, PIECES * workers, workers):
        pieces = PIECES * workers
        for tile in range(tile_at(tile_start, piece, pieces), tile_at(tile_start, piece + 1, pieces)):
            begin, length = tile_start[tile], tile_start[tile + 1] - tile_start[tile]
            x0, y0 = TILE * (tile % tiles_x), TILE * (first_row + tile // tiles_x)
            key = (first_row * tiles_x + tile) * STRIPS
            first, end = strip_start[key], strip_start[key + STRIPS]
            if first == end:
                continue
            if length >= met.shape[0]:
                met, slots = np.empty(length + 1, np.uint64), np.empty(length + 1, np.int64)
                scratch, group_weights = np.empty(8 * length + 8, np.float32), np.empty(8 * length + 8, np.float32)
            culled = end - first > 8 * (CULLED_FROM - 1)
            for s in range(length):
                at = slot_rank[begin + s] * RECORD
                prefetch(records, slot_rank[begin + min(s + AHEAD, length - 1)] * RECORD)
                met[s] = np.uint64(0xFFFFFFFF)
                if culled:
                    fill_rows(records, at, x0, y0, powers, shifts, 0)
                    met[s] = find_strips(records, at, powers, shifts, 0)
            for group in range(first, end, 8):
                lanes = min(8, end - group)
                for lane in range(8):
                    pixel = pixels[pixel_order[group + min(lane, lanes - 1)]]
                    x[lane], y[lane] = pixel % width - x0, pixel // width - y0
                    xs[lane], ys[lane] = f(x[lane]), f(y[lane])
                found = _weigh_group(
                    records, slot_rank, begin, length, met, _group_strips(x, y, lanes), x0, y0, xs, ys, lanes,
                    scratch, group_weights, slots,
                )  # fmt: skip
                if groups > 0:
                    found = _merge(rank_group, slot_rank, begin, slots, group_weights, found, places)
                ranks, weights = _grown(ranks, used, 8 * found + 1), _grown(weights, used, 8 * found + 1)
                for lane in range(lanes):
                    row, to, left_out = pixel_order[group + lane], used, f(0.0)
                    for q in range(found):  # written always, kept where it counts: no branch to guess
                        w = group_weights[8 * q + lane]
                        ranks[to] = slots[q] if groups > 0 else slot_rank[begin + slots[q]]
                        weights[to] = w
                        kept = (w > f(0.0)) & (w >= min_weight)
                        left_out += f(0.0) if kept else w
                        to += kept
                    if heaviest > 0 and to - used > heaviest:
                        left_out += f(_keep_heaviest(ranks, weights, used, to - used, heaviest, largest))
                        to = used + heaviest
                    if to > most_entries:
                        row_count[row] = -1
                        return ranks, weights, used
                    row_start[row], row_count[row], remainder[row] = used, to - used, left_out
                    used = to
    return ranks, weights, used


@kernel
def copy_rows(
    worker, workers, order, tile_start, tiles_x, first_row, strip_start, pixel_order, row_start, row_count, indptr,
    ranks, weights, out_ids, out_weights,
):  # fmt: skip
    """Copy what `weights_of_tiles` gave this worker to its rows of the CSR matrix, ranks turned into Gaussians."""
    for piece in range(worker, PIECES * workers, workers):
        pieces = PIECES * workers
        first_tile = first_row * tiles_x + tile_at(tile_start, piece, pieces)
        last_tile = first_row * tiles_x + tile_at(tile_start, piece + 1, pieces)
        for k in range(strip_start[first_tile * STRIPS], strip_start[last_tile * STRIPS]):
            row = pixel_order[k]
            a, b = row_start[row], indptr[row]
            for e in range(row_count[row]):
                out_ids[b + e], out_weights[b + e] = order[ranks[a + e]], weights[a + e]
