"""Front-to-back blending of binned Gaussians, and its gradient.

Notation (bins.py has the rest): C channels, padded to a multiple of four; a tile is 2 x 16 strips, a strip being 8
pixels of one row, which is one `Lanes`; strip j covers row j & 15 and half j >> 4. Per pixel, front to back:

    alpha_i = min(0.999, 2^power),  power = log2_opacity - G dy^2 - A u^2,  u = dx + k dy,  skipped under 1/255
    w_i = alpha_i T_i,   T_{i+1} = T_i (1 - alpha_i),   and the pixel is finished before T would fall to 1e-4
    out = sum_i w_i value_i

dy is the same along a strip, so a Gaussian's part in a row of a tile is two numbers: power at u = 0, and the shift
that turns the pixel's column into u. A pixel's cut is the slot, counted from the tile's first, at which it finished:
slots before it count.

Gradient, back to front, with v = dL/dout and S = what lies behind i (background and all w_j v.value_j, j > i):

    dL/dvalue_i = w_i v,    dL/dalpha_i = T_i v.value_i - S / (1 - alpha_i),    e = alpha_i dL/dalpha_i = -dL/dsigma

e leaves a tile as its six moments (1, u, dy, u^2, u dy, dy^2), written once a slot and summed per Gaussian in the
order of its pairs: no atomics, and the same bits for any number of threads. Where they are asked for, two more sums go
along, of |e u| and |e (A k u + G dy)|: the gradient by the mean, its magnitude taken at every pixel (`Render.absgrad`).

Speed: the forward pass goes strip by strip (T stays in a register), the gradient Gaussian by Gaussian (its sums do);
both work in short loops over small buffers, so that the processor overlaps one strip with the next, and channels are
summed eight at a time in registers. What is read at random, records and values, is prefetched some slots ahead.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import math

import numpy as np
from numba import float32 as f

from cgc.kernels import kernel
from cgc.rasterize.bins import LOG2E, RECORD, TILE
from cgc.rasterize.lanes import (
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
    magnitude,
    maximum,
    minimum,
    prefetch,
    select,
    splat,
    sqrt,
    store,
    store_half,
    totals,
    transpose_block,
)

STRIPS = 32
GROUP = 4  # channels are padded to a multiple of it
PIXELS = TILE * TILE
MOMENTS = 8  # six, and two sums of magnitudes: one Lanes
ALPHA_MAX, T_MIN = 0.999, 1e-4
POWER_MIN = math.log2(1.0 / 255.0)
CHUNK = 64  # slots that the forward pass has in its buffers at one time
AHEAD = 10  # slots between a prefetch and its use
PIECES = 4  # runs of tiles a worker, each with as many slots as the others


@kernel
def tile_at(tile_start, piece, pieces):
    """Return the first tile of piece `piece` when the tiles are cut into `pieces` runs of equally many slots."""
    goal = piece * tile_start[-1] // pieces
    low, high = 0, tile_start.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if tile_start[middle] >= goal:
            high = middle
        else:
            low = middle + 1
    return low if piece < pieces else tile_start.shape[0] - 1


@kernel
def clear(array, first, end):
    """Write 0 to array[first : end]; a loop, because numba compiles slices slowly."""
    for at in range(first, end):
        array[at] = f(0.0)


@kernel
def fill_rows(records, at, x0, y0, powers, shifts, to):
    """Write the power at u = 0 and the shift of the record at `at` in the tile's 16 rows, from index `to` on."""
    mx, my, k = broadcast(records, at), broadcast(records, at + 1), broadcast(records, at + 3)
    G, log2_opacity = broadcast(records, at + 4), broadcast(records, at + 5)
    for row in range(0, TILE, 8):
        dy = iota() + splat(f(y0 + row) + f(0.5)) - my
        store(powers, to + row, log2_opacity - G * dy * dy)
        store(shifts, to + row, fma(k, dy, splat(f(x0) + f(0.5)) - mx))


@kernel
def find_strips(records, at, powers, shifts, to):
    """Return the strips of a tile that the ellipse of the record at `at` meets, one bit each; rows as `fill_rows`."""
    inverse_A = broadcast(records, at + 7)
    zero = splat(f(0.0))
    found = np.uint64(0)
    for row in range(0, TILE, 8):
        left_over = load(powers, to + row) - splat(f(POWER_MIN - 1e-4))  # a hair wide: pixels decide exactly
        shift = load(shifts, to + row)
        reach = sqrt(maximum(left_over, zero) * inverse_A) + splat(f(0.01))
        low, high = zero - shift - reach, reach - shift
        meets = greater_equal(left_over, zero)
        for half in range(2):
            first, last = splat(f(8 * half)), splat(f(8 * half + 7))
            hit = both(meets, both(less_equal(low, last), greater_equal(high, first)))
            found |= bits(hit) << np.uint64(16 * half + row)
    return found


@kernel
def _inside(x, y, width, height):
    """Return which pixels of the strip at (x, y) lie in the image."""
    return greater(splat(f(width - x if y < height else 0)), iota())


@kernel
def _list_strips(
    records, slot_rank, first, stop, end, channels, values, x0, y0, live, powers, shifts, As, value_at, lists, count
):
    """List the chunk's slots that meet each strip in `live`: lists [STRIPS * CHUNK], count [STRIPS]."""
    for j in range(STRIPS):
        count[j] = 0
    for slot in range(first, stop):
        soon = slot_rank[min(slot + AHEAD, end - 1)]
        prefetch(records, soon * RECORD)
        for c in range(0, channels, 16):
            prefetch(values, soon * channels + c)
        at, s = slot_rank[slot] * RECORD, slot - first
        As[s], value_at[s] = records[at + 2], slot_rank[slot] * channels
        fill_rows(records, at, x0, y0, powers, shifts, TILE * s)
        strips = find_strips(records, at, powers, shifts, TILE * s) & live
        while strips != 0:
            j = lowest_bit(strips)
            strips &= strips - np.uint64(1)
            lists[j * CHUNK + count[j]] = s
            count[j] += 1


@kernel
def _find_alphas(lists, j, n, powers, shifts, As, alphas):
    """Write alpha of each of the n slots listed for strip j, 0 where it does not count."""
    row, x = j & 15, iota() + splat(f(8 * (j >> 4)))
    for q in range(n):
        s = np.int64(lists[j * CHUNK + q])
        u = x + broadcast(shifts, TILE * s + row)
        power = broadcast(powers, TILE * s + row) - broadcast(As, s) * u * u
        alpha = minimum(exp2(power), splat(f(ALPHA_MAX)))
        store(alphas, 8 * q, select(greater_equal(power, splat(f(POWER_MIN))), alpha, splat(f(0.0))))


@kernel
def _add_eight(values, c, weights, ids, n, out, at):
    """Add n weighted values (at ids[q] + c on) to eight channels of a strip, out from `at` on."""
    a0, a1, a2, a3 = load(out, at), load(out, at + 8), load(out, at + 16), load(out, at + 24)
    a4, a5, a6, a7 = load(out, at + 32), load(out, at + 40), load(out, at + 48), load(out, at + 56)
    for q in range(n):
        w, i = load(weights, 8 * q), ids[q] + c
        a0, a1 = fma(w, broadcast(values, i), a0), fma(w, broadcast(values, i + 1), a1)
        a2, a3 = fma(w, broadcast(values, i + 2), a2), fma(w, broadcast(values, i + 3), a3)
        a4, a5 = fma(w, broadcast(values, i + 4), a4), fma(w, broadcast(values, i + 5), a5)
        a6, a7 = fma(w, broadcast(values, i + 6), a6), fma(w, broadcast(values, i + 7), a7)
    store(out, at, a0)
    store(out, at + 8, a1)
    store(out, at + 16, a2)
    store(out, at + 24, a3)
    store(out, at + 32, a4)
    store(out, at + 40, a5)
    store(out, at + 48, a6)
    store(out, at + 56, a7)


@kernel
def _add_four(values, c, weights, ids, n, out, at):
    """As `_add_eight`, for four channels."""
    a0, a1, a2, a3 = load(out, at), load(out, at + 8), load(out, at + 16), load(out, at + 24)
    for q in range(n):
        w, i = load(weights, 8 * q), ids[q] + c
        a0, a1 = fma(w, broadcast(values, i), a0), fma(w, broadcast(values, i + 1), a1)
        a2, a3 = fma(w, broadcast(values, i + 2), a2), fma(w, broadcast(values, i + 3), a3)
    store(out, at, a0)
    store(out, at + 8, a1)
    store(out, at + 16, a2)
    store(out, at + 24, a3)


@kernel
def blend(
    worker, workers, records, values, channels, given, tile_start, slot_rank, tiles_x, y_start, width, height,
    image, final_T, cut,
):  # fmt: skip
    """Blend `values` [V * C] by rank into image [H * W * given]; final_T [H * W]; cut [H * W] int32.

    y_start is the first pixel row of the band, given <= C the channels that are asked for.
    """
    T, last_T, cuts = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    out = np.empty(PIXELS * channels, np.float32)
    powers, shifts = np.empty(TILE * CHUNK, np.float32), np.empty(TILE * CHUNK, np.float32)
    As, value_at = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.int64)
    lists, count = np.empty(STRIPS * CHUNK, np.uint8), np.empty(STRIPS, np.int64)
    alphas, weights = np.empty(8 * CHUNK, np.float32), np.empty(8 * CHUNK + 8, np.float32)
    ids = np.empty(CHUNK + 1, np.int64)
    stride = 8 * channels
    for piece in range(worker, PIECES * workers, workers):
        pieces = PIECES * workers
        for tile in range(tile_at(tile_start, piece, pieces), tile_at(tile_start, piece + 1, pieces)):
            x0, y0 = TILE * (tile % tiles_x), y_start + TILE * (tile // tiles_x)
            begin, end = tile_start[tile], tile_start[tile + 1]
            live = np.uint64(0)  # strips with a pixel that is not finished
            for j in range(STRIPS):
                inside = _inside(x0 + 8 * (j >> 4), y0 + (j & 15), width, height)
                if bits(inside) != 0:
                    live |= np.uint64(1) << np.uint64(j)
                store(T, 8 * j, select(inside, splat(f(1.0)), splat(f(0.0))))
                store(last_T, 8 * j, splat(f(1.0)))
                store(cuts, 8 * j, splat(f(end - begin)))
            clear(out, 0, PIXELS * channels)
            first = begin
            while first < end and live != 0:
                stop = min(first + CHUNK, end)
                _list_strips(
                    records, slot_rank, first, stop, end, channels, values, x0, y0, live,
                    powers, shifts, As, value_at, lists, count,
                )  # fmt: skip
                strips = live
                while strips != 0:
                    j = lowest_bit(strips)
                    strips &= strips - np.uint64(1)
                    if count[j] == 0:
                        continue
                    _find_alphas(lists, j, count[j], powers, shifts, As, alphas)
                    # T is 0 where a pixel is finished or outside, last_T is what it finished with
                    before, kept = load(T, 8 * j), load(last_T, 8 * j)
                    finished = bits(less_equal(before, splat(f(0.0))))
                    n = 0
                    for q in range(count[j]):
                        s = np.int64(lists[j * CHUNK + q])
                        w = load(alphas, 8 * q) * before
                        after = before - w
                        goes_on = greater(after, splat(f(T_MIN)))
                        w = select(goes_on, w, splat(f(0.0)))
                        kept = select(goes_on, after, kept)
                        stopped = np.uint64(255) ^ bits(goes_on)
                        if stopped != finished:
                            finished = stopped
                            now = both(greater(before, splat(f(0.0))), less_equal(after, splat(f(T_MIN))))
                            store(cuts, 8 * j, select(now, splat(f(first - begin + s)), load(cuts, 8 * j)))
                        before = select(goes_on, after, splat(f(0.0)))
                        store(weights, 8 * n, w)
                        ids[n] = value_at[s]
                        n += bits(greater(w, splat(f(0.0)))) != 0
                        if stopped == 255:
                            live ^= np.uint64(1) << np.uint64(j)
                            break
                    store(T, 8 * j, before)
                    store(last_T, 8 * j, kept)
                    for c in range(0, channels - GROUP, 8):
                        _add_eight(values, c, weights, ids, n, out, j * stride + 8 * c)
                    if channels & GROUP:
                        _add_four(values, channels - GROUP, weights, ids, n, out, (j + 1) * stride - 8 * GROUP)
                first = stop
            for j in range(STRIPS):
                x, y = x0 + 8 * (j >> 4), y0 + (j & 15)
                lanes = min(8, width - x) if y < height else 0
                pixel = y * width + x
                whole = given // 8 * 8 if lanes == 8 else 0  # channels that are turned eight at a time
                for c in range(0, whole, 8):
                    transpose_block(out, j * stride + 8 * c, 8, image, pixel * given + c, given)
                for lane in range(lanes):
                    final_T[pixel + lane], cut[pixel + lane] = last_T[8 * j + lane], np.int32(cuts[8 * j + lane])
                    for c in range(whole, given):
                        image[(pixel + lane) * given + c] = out[j * stride + 8 * c + lane]


@kernel
def _dots(values, at, v, stride, strips, n, dots):
    """Write v . value of n strips, four at a time (strips [n + 3] may name any strip past n)."""
    for q in range(0, n, 4):
        a, b, c, d = strips[q] * stride, strips[q + 1] * stride, strips[q + 2] * stride, strips[q + 3] * stride
        s0 = s1 = s2 = s3 = splat(f(0.0))
        for channel in range(0, stride // 8, GROUP):
            for k in range(GROUP):  # a constant count: the compiler unrolls it
                value, to = broadcast(values, at + channel + k), 8 * (channel + k)
                s0, s1 = fma(value, load(v, a + to), s0), fma(value, load(v, b + to), s1)
                s2, s3 = fma(value, load(v, c + to), s2), fma(value, load(v, d + to), s3)
        store(dots, 8 * q, s0)
        store(dots, 8 * q + 8, s1)
        store(dots, 8 * q + 16, s2)
        store(dots, 8 * q + 24, s3)


@kernel
def _sum_eight(v, stride, c, strips, weights, n, out, to):
    """Write sum over n strips and their pixels of w v for eight channels from c on, to out from `to` on."""
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = splat(f(0.0))
    for q in range(n):
        w, at = load(weights, 8 * q), strips[q] * stride + 8 * c
        a0, a1 = fma(w, load(v, at), a0), fma(w, load(v, at + 8), a1)
        a2, a3 = fma(w, load(v, at + 16), a2), fma(w, load(v, at + 24), a3)
        a4, a5 = fma(w, load(v, at + 32), a4), fma(w, load(v, at + 40), a5)
        a6, a7 = fma(w, load(v, at + 48), a6), fma(w, load(v, at + 56), a7)
    store(out, to, totals(a0, a1, a2, a3, a4, a5, a6, a7))


@kernel
def _sum_four(v, stride, c, strips, weights, n, out, to):
    """As `_sum_eight`, for four channels."""
    zero = splat(f(0.0))
    a0 = a1 = a2 = a3 = zero
    for q in range(n):
        w, at = load(weights, 8 * q), strips[q] * stride + 8 * c
        a0, a1 = fma(w, load(v, at), a0), fma(w, load(v, at + 8), a1)
        a2, a3 = fma(w, load(v, at + 16), a2), fma(w, load(v, at + 24), a3)
    store_half(out, to, totals(a0, a1, a2, a3, zero, zero, zero, zero))


@kernel
def _load_tile(x0, y0, width, height, given, stride, final_T, cut, v_image, v_final_T, T, cuts, behind, v):
    """Fill the tile's T, cuts, behind [PIXELS] and v [STRIPS, C, 8]; return its deepest cut."""
    deepest = 0
    for j in range(STRIPS):
        x, y = x0 + 8 * (j >> 4), y0 + (j & 15)
        lanes = max(min(8, width - x), 0) if y < height else 0
        pixel = y * width + x
        store(T, 8 * j, splat(f(1.0)))
        store(cuts, 8 * j, splat(f(0.0)))
        store(behind, 8 * j, splat(f(0.0)))
        for lane in range(lanes):
            T[8 * j + lane], cuts[8 * j + lane] = final_T[pixel + lane], f(cut[pixel + lane])
            behind[8 * j + lane] = final_T[pixel + lane] * v_final_T[pixel + lane]
            deepest = max(deepest, cut[pixel + lane])
        whole = given // 8 * 8 if lanes == 8 else 0
        for c in range(0, whole, 8):
            transpose_block(v_image, pixel * given + c, given, v, j * stride + 8 * c, 8)
        for c in range(whole, given):
            for lane in range(lanes):
                v[j * stride + 8 * c + lane] = v_image[(pixel + lane) * given + c]
            for lane in range(lanes, 8):
                v[j * stride + 8 * c + lane] = f(0.0)
    return deepest


@kernel
def blend_backward(
    worker, workers, records, values, channels, given, tile_start, slot_rank, tiles_x, y_start, width, height,
    final_T, cut, v_image, v_final_T, absolute, slot_moments, slot_values,
):  # fmt: skip
    """Write each slot's moments of e, slot_moments [slots * MOMENTS], and value gradient, slot_values [slots * C].

    absolute: also the sums of magnitudes, else 0.
    """
    T, cuts, behind = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    v = np.zeros(PIXELS * channels, np.float32)
    powers, shifts = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    us, raws = np.empty(8 * STRIPS + 8, np.float32), np.empty(8 * STRIPS + 8, np.float32)
    dots, weights = np.empty(8 * STRIPS + 32, np.float32), np.empty(8 * STRIPS, np.float32)
    strips = np.zeros(STRIPS + 4, np.int64)
    stride, zero, one = 8 * channels, splat(f(0.0)), splat(f(1.0))
    for piece in range(worker, PIECES * workers, workers):
        pieces = PIECES * workers
        for tile in range(tile_at(tile_start, piece, pieces), tile_at(tile_start, piece + 1, pieces)):
            x0, y0 = TILE * (tile % tiles_x), y_start + TILE * (tile // tiles_x)
            begin, end = tile_start[tile], tile_start[tile + 1]
            deepest = _load_tile(
                x0, y0, width, height, given, stride, final_T, cut, v_image, v_final_T, T, cuts, behind, v
            )
            clear(slot_moments, (begin + deepest) * MOMENTS, end * MOMENTS)  # behind every finished pixel
            clear(slot_values, (begin + deepest) * channels, end * channels)
            for slot in range(begin + deepest - 1, begin - 1, -1):
                soon = slot_rank[max(slot - AHEAD, 0)]
                prefetch(records, soon * RECORD)
                for c in range(0, channels, 16):
                    prefetch(values, soon * channels + c)
                rank = slot_rank[slot]
                at = rank * RECORD
                fill_rows(records, at, x0, y0, powers, shifts, 0)
                A, my, here = broadcast(records, at + 2), broadcast(records, at + 1), splat(f(slot - begin))
                left = find_strips(records, at, powers, shifts, 0)
                n = 0
                while left != 0:
                    j = lowest_bit(left)
                    left &= left - np.uint64(1)
                    u = iota() + splat(f(8 * (j >> 4))) + broadcast(shifts, j & 15)
                    power = broadcast(powers, j & 15) - A * u * u
                    counts = both(greater_equal(power, splat(f(POWER_MIN))), greater(load(cuts, 8 * j), here))
                    store(us, 8 * n, u)
                    store(raws, 8 * n, select(counts, exp2(power), zero))
                    strips[n] = j
                    n += bits(counts) != 0
                _dots(values, rank * channels, v, stride, strips, n, dots)
                m = mu = my_ = muu = muy = myy = size_u = size_y = zero
                Ak, G = A * broadcast(records, at + 3), broadcast(records, at + 4)
                for q in range(n):
                    j, u, raw = strips[q], load(us, 8 * q), load(raws, 8 * q)
                    dy = splat(f(y0 + (j & 15)) + f(0.5)) - my
                    alpha = minimum(raw, splat(f(ALPHA_MAX)))
                    inverse = divide(one, one - alpha)
                    before = load(T, 8 * j) * inverse
                    store(T, 8 * j, before)
                    w = alpha * before
                    store(weights, 8 * q, w)
                    dot, rest = load(dots, 8 * q), load(behind, 8 * j)
                    store(behind, 8 * j, fma(w, dot, rest))
                    e = select(greater(raw, splat(f(ALPHA_MAX))), zero, w * dot - alpha * inverse * rest)
                    eu, ey = e * u, e * dy
                    m, mu, my_ = m + e, mu + eu, my_ + ey
                    muu, muy, myy = fma(eu, u, muu), fma(eu, dy, muy), fma(ey, dy, myy)
                    if absolute:
                        size_u, size_y = size_u + magnitude(eu), size_y + magnitude(fma(Ak, eu, G * ey))
                store(slot_moments, slot * MOMENTS, totals(m, mu, my_, muu, muy, myy, size_u, size_y))
                for c in range(0, channels - GROUP, 8):
                    _sum_eight(v, stride, c, strips, weights, n, slot_values, slot * channels + c)
                if channels & GROUP:
                    c = channels - GROUP
                    _sum_four(v, stride, c, strips, weights, n, slot_values, slot * channels + c)


@kernel
def gather_gradients(
    worker, workers, order, first_pair, pair_slot, slot_moments, slot_values, channels, given, ellipses, opacities,
    v_means2d, v_ellipses, v_opacities, v_values, absolute, absgrad,
):  # fmt: skip
    """Add up each Gaussian's pairs, turn moments of e into gradients, and add those to the outputs, flat [N * ...].

    slot_values has room for eight numbers past its end. absgrad is left alone unless `absolute`.
    """
    moments = np.empty(MOMENTS, np.float32)
    pairs, whole = first_pair[-1], given // 8 * 8
    first, last = tile_at(first_pair, worker, workers), tile_at(first_pair, worker + 1, workers)
    for rank in range(first, last):
        soon = order[min(rank + AHEAD, last - 1)]
        prefetch(v_means2d, 2 * soon)
        prefetch(v_ellipses, 3 * soon)
        prefetch(v_opacities, soon)
        prefetch(ellipses, 3 * soon)
        prefetch(opacities, soon)
        for c in range(0, given, 16):
            prefetch(v_values, soon * given + c)
        begin, end = first_pair[rank], first_pair[rank + 1]
        if begin == end:
            continue
        i = order[rank]
        total = splat(f(0.0))
        for pair in range(begin, end):
            soon = pair_slot[min(pair + AHEAD, pairs - 1)]
            prefetch(slot_moments, soon * MOMENTS)
            for c in range(0, channels, 16):
                prefetch(slot_values, soon * channels + c)
            total = total + load(slot_moments, pair_slot[pair] * MOMENTS)
        store(moments, 0, total)
        for c in range(0, whole, 8):
            total = load(v_values, i * given + c)
            for pair in range(begin, end):
                total = total + load(slot_values, pair_slot[pair] * channels + c)
            store(v_values, i * given + c, total)
        for c in range(whole, given):
            for pair in range(begin, end):
                v_values[i * given + c] += slot_values[pair_slot[pair] * channels + c]
        mu, my = moments[1], moments[2]
        a, k, g = ellipses[3 * i], ellipses[3 * i + 1], ellipses[3 * i + 2]
        v_means2d[2 * i] += a * mu
        v_means2d[2 * i + 1] += a * k * mu + g * my
        v_ellipses[3 * i] += f(-0.5) * moments[3]
        v_ellipses[3 * i + 1] += -a * moments[4]
        v_ellipses[3 * i + 2] += f(-0.5) * moments[5]
        v_opacities[i] += moments[0] / opacities[i]
        if absolute:
            absgrad[2 * i] += a * moments[6]
            absgrad[2 * i + 1] += f(2.0 / LOG2E) * moments[7]


@kernel
def pack_values(worker, workers, order, values, given, channels, packed):
    """Write values [N * given] by rank to packed [V * C], zeros where channels are padded."""
    count, whole = order.shape[0], given // 8 * 8
    for r in range(worker * count // workers, (worker + 1) * count // workers):
        soon = order[min(r + AHEAD, count - 1)]
        for c in range(0, given, 16):
            prefetch(values, soon * given + c)
        i = order[r]
        for c in range(0, whole, 8):
            store(packed, r * channels + c, load(values, i * given + c))
        for c in range(whole, given):
            packed[r * channels + c] = values[i * given + c]
        for c in range(given, channels):
            packed[r * channels + c] = f(0.0)
