"""Front-to-back blending of binned Gaussians, its gradient, and the blending weights themselves.

Notation (bins.py has the rest): C channels; a tile is 2 x 16 strips, a strip being 8 pixels of one row, which is one
`Lanes`; strip j covers row j & 15 and half j >> 4. Per pixel, front to back:

    alpha_i = min(0.999, 2^(log2_opacity - A u^2 - G dy^2)), skipped under 1/255
    w_i = alpha_i T_i,   T_{i+1} = T_i (1 - alpha_i),   and the pixel is finished before T would fall to 1e-4
    out = sum_i w_i value_i

A finished pixel keeps its T with the sign turned, so that one compare tells live pixels from finished ones.
Gradient, back to front, with v = dL/dout and S = what lies behind i (background and all w_j v.value_j, j > i):

    dL/dvalue_i = w_i v,    dL/dalpha_i = T_i v.value_i - S / (1 - alpha_i),    e = alpha_i dL/dalpha_i = -dL/dsigma

e leaves a tile as its six moments (1, u, dy, u^2, u dy, dy^2), written once per pair and summed per Gaussian in
the order of its pairs: no atomics, and the same bits for any number of threads.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import numpy as np
from numba import float32 as f
from numba import njit, prange

from cgc.rasterize.bins import RECORD, TILE
from cgc.rasterize.lanes import (
    absolute,
    bits,
    both,
    broadcast,
    divide,
    exp2,
    fma,
    greater,
    greater_equal,
    iota,
    less_equal,
    load,
    lowest_bit,
    maximum,
    minimum,
    select,
    splat,
    sqrt,
    store,
    total,
)

STRIPS = 32
GROUP = 4  # channels are padded to a multiple of it
PIXELS = TILE * TILE
MOMENTS = 6
ALPHA_MAX, ALPHA_MIN, T_MIN = 0.999, 1.0 / 255.0, 1e-4


@njit(cache=True, error_model="numpy")
def _strips(records, at, x0, y0):
    """Return the strips of the tile at (x0, y0) that the ellipse of the record at `at` meets, one bit each."""
    mx, my, k = broadcast(records, at), broadcast(records, at + 1), broadcast(records, at + 3)
    G, level, inv_a = broadcast(records, at + 4), broadcast(records, at + 6), broadcast(records, at + 7)
    zero = splat(f(0.0))
    found = np.uint32(0)
    for half_rows in range(2):
        dy = iota() + splat(f(y0 + 8 * half_rows) + f(0.5)) - my
        left_over = level - G * dy * dy
        reach = sqrt(maximum(left_over, zero) * inv_a) + splat(f(0.01))
        centre = mx - k * dy
        low, high = centre - reach, centre + reach
        meets = greater_equal(left_over, zero)
        for half in range(2):
            first, last = f(x0 + 8 * half) + f(0.5), f(x0 + 8 * half) + f(7.5)
            hit = both(meets, both(less_equal(low, splat(last)), greater_equal(high, splat(first))))
            found |= bits(hit) << np.uint32(16 * half + 8 * half_rows)
    return found


@njit(cache=True, error_model="numpy")
def _alpha(records, at, x, y):
    """Return (alpha unclamped, u, dy) of the record at `at` for pixel centres x, y (Lanes)."""
    dy = y - broadcast(records, at + 1)
    u = fma(broadcast(records, at + 3), dy, x - broadcast(records, at))
    power = broadcast(records, at + 5) - broadcast(records, at + 4) * dy * dy
    return exp2(power - broadcast(records, at + 2) * u * u), u, dy


@njit(cache=True, error_model="numpy")
def _inside(x0, y0, width, height, T):
    """Write 1 to T [PIXELS] for pixels inside the image, -1 (finished) for those outside."""
    for j in range(STRIPS):
        y, x = y0 + (j & 15), x0 + 8 * (j >> 4)
        for lane in range(8):
            T[8 * j + lane] = f(1.0) if y < height and x + lane < width else f(-1.0)


@njit(cache=True, error_model="numpy")
def _any_live(T):
    live = splat(f(-1.0))
    for j in range(STRIPS):
        live = maximum(live, load(T, 8 * j))
    return bits(greater(live, splat(f(0.0)))) != 0


@njit(cache=True, error_model="numpy", parallel=True)
def blend(
    workers,
    records,
    values,
    channels,
    tile_start,
    slot_rank,
    tiles_x,
    width,
    height,
    image,
    final_T,
    last_slot,
):
    """Blend `values` [V * C] by rank into image [H, W, <= C]; final_T [H, W]; last_slot [H, W] int32.

    last_slot is the number of slots of the tile's list up to the last one that counted for the pixel (0: none).
    """
    n_tiles = tile_start.shape[0] - 1
    for worker in prange(workers):
        T, last = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
        out = np.empty(PIXELS * channels, np.float32)
        for tile in range(worker, n_tiles, workers):
            x0, y0 = TILE * (tile % tiles_x), TILE * (tile // tiles_x)
            _inside(x0, y0, width, height, T)
            last[:] = f(0.0)
            out[:] = f(0.0)
            begin = tile_start[tile]
            for slot in range(begin, tile_start[tile + 1]):
                if (slot - begin) & 15 == 15 and not _any_live(T):
                    break
                rank = slot_rank[slot]
                at = rank * RECORD
                here = splat(f(slot - begin + 1))
                strips = _strips(records, at, x0, y0)
                while strips != 0:
                    j = lowest_bit(strips)
                    strips &= strips - np.uint32(1)
                    x = iota() + splat(f(x0 + 8 * (j >> 4)) + f(0.5))
                    y = splat(f(y0 + (j & 15)) + f(0.5))
                    alpha, _, _ = _alpha(records, at, x, y)
                    alpha = minimum(alpha, splat(f(ALPHA_MAX)))
                    alpha = select(greater_equal(alpha, splat(f(ALPHA_MIN))), alpha, splat(f(0.0)))
                    # no select between a new value and the one in memory: it becomes a masked store, which is slow
                    before = load(T, 8 * j)
                    w = alpha * before
                    after = before - w
                    live = greater(after, splat(f(T_MIN)))
                    store(T, 8 * j, select(live, after, splat(f(0.0)) - absolute(before)))
                    w = select(live, w, splat(f(0.0)))
                    counts = greater(w, splat(f(0.0)))
                    if bits(counts) == 0:
                        continue
                    store(last, 8 * j, maximum(load(last, 8 * j), select(counts, here, splat(f(0.0)))))
                    for c in range(0, channels, GROUP):
                        for k in range(GROUP):  # a constant count: the compiler unrolls it
                            cell = PIXELS * (c + k) + 8 * j
                            store(out, cell, fma(w, broadcast(values, rank * channels + c + k), load(out, cell)))
            for j in range(STRIPS):
                y = y0 + (j & 15)
                if y >= height:
                    continue
                for lane in range(8):
                    x = x0 + 8 * (j >> 4) + lane
                    if x < width:
                        final_T[y, x] = abs(T[8 * j + lane])
                        last_slot[y, x] = np.int32(last[8 * j + lane])
                        for c in range(image.shape[2]):
                            image[y, x, c] = out[PIXELS * c + 8 * j + lane]


@njit(cache=True, error_model="numpy", parallel=True)
def blend_backward(
    workers, records, values, channels, tile_start, slot_rank, slot_pair, tiles_x, width, height,
    final_T, last_slot, v_image, v_final_T, pair_moments, pair_values,
):  # fmt: skip
    """Write each pair's moments of e, pair_moments [pairs * MOMENTS], and value gradient, pair_values [pairs * C]."""
    n_tiles = tile_start.shape[0] - 1
    for worker in prange(workers):
        T, last, behind = (
            np.empty(PIXELS, np.float32),
            np.empty(PIXELS, np.float32),
            np.empty(PIXELS, np.float32),
        )
        v = np.zeros(PIXELS * channels, np.float32)
        v_value = np.empty(8 * channels, np.float32)
        for tile in range(worker, n_tiles, workers):
            x0, y0 = TILE * (tile % tiles_x), TILE * (tile // tiles_x)
            begin = tile_start[tile]
            deepest = 0
            for j in range(STRIPS):
                y = y0 + (j & 15)
                for lane in range(8):
                    x, p = x0 + 8 * (j >> 4) + lane, 8 * j + lane
                    if y < height and x < width:
                        T[p], last[p] = final_T[y, x], f(last_slot[y, x])
                        behind[p] = final_T[y, x] * v_final_T[y, x]
                        deepest = max(deepest, last_slot[y, x])
                        for c in range(v_image.shape[2]):
                            v[PIXELS * c + p] = v_image[y, x, c]
                    else:
                        T[p], last[p], behind[p] = f(1.0), f(0.0), f(0.0)
                        for c in range(v_image.shape[2]):
                            v[PIXELS * c + p] = f(0.0)
            for slot in range(begin + deepest, tile_start[tile + 1]):  # behind every finished pixel
                pair_moments[slot_pair[slot] * MOMENTS : (slot_pair[slot] + 1) * MOMENTS] = f(0.0)
                pair_values[slot_pair[slot] * channels : (slot_pair[slot] + 1) * channels] = f(0.0)
            for slot in range(begin + deepest - 1, begin - 1, -1):
                rank = slot_rank[slot]
                at = rank * RECORD
                here = splat(f(slot - begin + 1))
                m = mu = my = muu = muy = myy = splat(f(0.0))
                for c in range(channels):
                    store(v_value, 8 * c, splat(f(0.0)))
                strips = _strips(records, at, x0, y0)
                while strips != 0:
                    j = lowest_bit(strips)
                    strips &= strips - np.uint32(1)
                    x = iota() + splat(f(x0 + 8 * (j >> 4)) + f(0.5))
                    y = splat(f(y0 + (j & 15)) + f(0.5))
                    raw, u, dy = _alpha(records, at, x, y)
                    counts = both(greater_equal(raw, splat(f(ALPHA_MIN))), greater_equal(load(last, 8 * j), here))
                    if bits(counts) == 0:
                        continue
                    alpha = select(counts, minimum(raw, splat(f(ALPHA_MAX))), splat(f(0.0)))
                    after = load(T, 8 * j)
                    inverse = divide(splat(f(1.0)), splat(f(1.0)) - alpha)
                    before = after * inverse
                    store(T, 8 * j, before)
                    w = alpha * before
                    dot = splat(f(0.0))
                    for c in range(0, channels, GROUP):
                        for k in range(GROUP):
                            v_c = load(v, PIXELS * (c + k) + 8 * j)
                            dot = fma(broadcast(values, rank * channels + c + k), v_c, dot)
                            store(v_value, 8 * (c + k), fma(w, v_c, load(v_value, 8 * (c + k))))
                    rest = load(behind, 8 * j)
                    store(behind, 8 * j, fma(w, dot, rest))
                    e = w * dot - alpha * inverse * rest
                    e = select(greater(raw, splat(f(ALPHA_MAX))), splat(f(0.0)), e)
                    eu = e * u
                    m, mu, my = m + e, mu + eu, fma(e, dy, my)
                    muu, muy, myy = fma(eu, u, muu), fma(eu, dy, muy), fma(e * dy, dy, myy)
                out = slot_pair[slot] * MOMENTS
                pair_moments[out], pair_moments[out + 1], pair_moments[out + 2] = (
                    total(m),
                    total(mu),
                    total(my),
                )
                pair_moments[out + 3], pair_moments[out + 4] = total(muu), total(muy)
                pair_moments[out + 5] = total(myy)
                for c in range(channels):
                    pair_values[slot_pair[slot] * channels + c] = total(load(v_value, 8 * c))


@njit(cache=True, error_model="numpy", parallel=True)
def gather_gradients(
    order, first_pair, pair_moments, pair_values, channels, ellipses, opacities,
    v_means2d, v_ellipses, v_opacities, v_values,
):  # fmt: skip
    """Sum each Gaussian's pairs and turn moments of e into gradients; outputs [N, ...] hold zeros on entry."""
    for rank in prange(order.shape[0]):
        i = order[rank]
        m = mu = my = muu = muy = myy = 0.0
        for pair in range(first_pair[rank], first_pair[rank + 1]):
            at = pair * MOMENTS
            m, mu, my = m + pair_moments[at], mu + pair_moments[at + 1], my + pair_moments[at + 2]
            muu, muy, myy = muu + pair_moments[at + 3], muy + pair_moments[at + 4], myy + pair_moments[at + 5]
            for c in range(v_values.shape[1]):
                v_values[i, c] += pair_values[pair * channels + c]
        a, k, g = np.float64(ellipses[i, 0]), np.float64(ellipses[i, 1]), np.float64(ellipses[i, 2])
        v_means2d[i, 0], v_means2d[i, 1] = a * mu, a * k * mu + g * my
        v_ellipses[i, 0], v_ellipses[i, 1], v_ellipses[i, 2] = -0.5 * muu, -a * muy, -0.5 * myy
        v_opacities[i] = m / opacities[i]


@njit(cache=True, error_model="numpy")
def _grown(ranks, weights, used, wanted):
    """Return both arrays with room for `wanted` more than `used` entries."""
    if used + wanted <= ranks.shape[0]:
        return ranks, weights
    size = max(2 * ranks.shape[0], used + wanted)
    more_ranks, more_weights = np.empty(size, np.int32), np.empty(size, np.float32)
    more_ranks[:used], more_weights[:used] = ranks[:used], weights[:used]
    return more_ranks, more_weights


@njit(cache=True, error_model="numpy", nogil=True)
def weights_of_tiles(
    worker, workers, records, tile_start, slot_rank, tiles_x, width, pixel_start, pixel_order, pixels, min_weight,
    row_start, row_count,
):  # fmt: skip
    """Return (ranks, weights) of the pixels in every `workers`-th tile; row_start, row_count say whose they are.

    Pixels are taken eight at a time, wherever they lie in their tile: asking for few costs little.
    """
    ranks, weights = np.empty(4096, np.int32), np.empty(4096, np.float32)
    used = 0
    lane_rank, lane_weight = np.empty(0, np.int32), np.empty(0, np.float32)
    lane_count = np.empty(8, np.int64)
    xs, ys, ws = np.empty(8, np.float32), np.empty(8, np.float32), np.empty(8, np.float32)
    for tile in range(worker, tile_start.shape[0] - 1, workers):
        begin, end = tile_start[tile], tile_start[tile + 1]
        length = end - begin
        if 8 * length > lane_rank.shape[0]:
            lane_rank, lane_weight = np.empty(8 * length, np.int32), np.empty(8 * length, np.float32)
        for group in range(pixel_start[tile], pixel_start[tile + 1], 8):
            lanes = min(8, pixel_start[tile + 1] - group)
            T = splat(f(0.0)) - splat(f(1.0))
            for lane in range(8):
                p = pixels[pixel_order[group + min(lane, lanes - 1)]]
                xs[lane], ys[lane] = f(p % width) + f(0.5), f(p // width) + f(0.5)
                lane_count[lane] = 0
            T = select(greater(splat(f(lanes)), iota()), splat(f(1.0)), T)
            x, y = load(xs, 0), load(ys, 0)
            for slot in range(begin, end):
                rank = slot_rank[slot]
                alpha, _, _ = _alpha(records, rank * RECORD, x, y)
                alpha = minimum(alpha, splat(f(ALPHA_MAX)))
                counts = both(greater_equal(alpha, splat(f(ALPHA_MIN))), greater(T, splat(f(0.0))))
                if bits(counts) == 0:
                    continue
                w = alpha * T
                after = T - w
                keep = both(counts, greater(after, splat(f(T_MIN))))
                T = select(keep, after, select(counts, splat(f(0.0)) - T, T))
                live = bits(greater(T, splat(f(0.0))))
                heavy = bits(both(keep, greater_equal(w, splat(f(min_weight)))))
                if heavy != 0:
                    store(ws, 0, w)
                    while heavy != 0:
                        lane = lowest_bit(heavy)
                        heavy &= heavy - np.uint32(1)
                        at = lane * length + lane_count[lane]
                        lane_rank[at], lane_weight[at] = rank, ws[lane]
                        lane_count[lane] += 1
                if live == 0:
                    break
            for lane in range(lanes):
                n = lane_count[lane]
                ranks, weights = _grown(ranks, weights, used, n)
                at = lane * length
                ranks[used : used + n] = lane_rank[at : at + n]
                weights[used : used + n] = lane_weight[at : at + n]
                row = pixel_order[group + lane]
                row_start[row], row_count[row] = used, n
                used += n
    return ranks[:used], weights[:used]


@njit(cache=True, error_model="numpy", nogil=True)
def copy_rows(
    worker, workers, order, pixel_start, pixel_order, row_start, row_count, indptr, ranks, weights, out_ids, out_weights
):
    """Copy what `weights_of_tiles` gave `worker` to its rows of the CSR matrix, ranks turned into Gaussians."""
    for tile in range(worker, pixel_start.shape[0] - 1, workers):
        for k in range(pixel_start[tile], pixel_start[tile + 1]):
            row = pixel_order[k]
            a, b = row_start[row], indptr[row]
            for e in range(row_count[row]):
                out_ids[b + e] = order[ranks[a + e]]
                out_weights[b + e] = weights[a + e]
