"""Loops over the rows and cells of pairs, compiled (`native`): threads run them side by side.

A cell is a pair of values that occurs; its n rows hold k positive ones. What indexes arrays is unsigned: numba would
look whether a signed number is negative, each time. What a kernel needs to work in, its caller allocates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoembed.native import native, summing
from autoembed.types import Array

# Machine code counts in unsigned numbers, of which Python's operators make other types.
Number = Any

_TEMPER = 0.1
_FREE = 0.05  # less of a cell is free where one value all but fixes the other: it shows no interaction
_STEP = 2.0


def sort_rows(codes: Array, K: int) -> tuple[Array, Array]:
    """Counting sort: the rows in the order of their codes, uint32 [rows], and where each code starts, [K + 1]."""
    starts, order = np.zeros(K + 1, np.uint32), np.empty(len(codes), np.uint32)
    counting_sort(codes, starts, np.empty(K, np.uint32), order)
    return order, starts


@native
def counting_sort(codes: Array, starts: Array, place: Array, order: Array) -> None:
    """`sort_rows` into `starts`, which is zero, and `order`."""
    K = len(place)
    for code in codes:
        starts[code + 1] += 1
    for value in range(K):
        starts[value + 1] += starts[value]
        place[value] = starts[value]
    for row in range(len(codes)):
        order[place[codes[row]]] = row
        place[codes[row]] += 1


@native
def cells_direct(
    a: Array,
    b: Array,
    labels: Array,
    Ka: int,
    Kb: int,
    counter: Array,
    bits: int,
    least: int,
    packed: Array,
    ca: Array,
    cb: Array,
    cn: Array,
    ck: Array,
) -> tuple[int, int]:
    """The cells of two columns through a table of all Ka * Kb counters, zero before and after.

    A counter holds rows in its lower `bits`, positives above; `packed` [rows + 1] is of its type. ca and cb, uint32, cn
    and ck, int32 [rows + 1] each, are filled with both codes, the rows and the positives of each cell that has `least`
    rows, in the order of a. Returns their number, and that of all cells. No cell is branched on: half may be empty.
    """
    for i in range(len(a)):
        counter[np.uint32(a[i]) * np.uint32(Kb) + np.uint32(b[i])] += np.uint64(1) + (
            np.uint64(labels[i]) << np.uint64(bits)
        )
    found: Number = np.uint32(0)
    seen = 0
    low = np.uint32((1 << bits) - 1)
    for x in range(np.uint32(Ka)):
        first = found
        for y in range(np.uint32(Kb)):
            c: Number = x * np.uint32(Kb) + y
            cell = counter[c]
            counter[c] = 0
            cb[found] = y
            packed[found] = cell
            n = np.uint32(cell) & low
            seen += int(n > 0)
            found += np.uint32(n >= least)
        ca[first:found] = x
    for c in range(found):
        cn[c], ck[c] = np.uint32(packed[c]) & low, packed[c] >> np.uint64(bits)
    return found, seen


@native
def cells_walk(
    order: Array,
    starts: Array,
    a: Array,
    b: Array,
    labels: Array,
    counter: Array,
    bits: int,
    least: int,
    packed: Array,
    y: Array,
    ca: Array,
    cb: Array,
    cn: Array,
    ck: Array,
) -> tuple[int, int]:
    """As `cells_direct`, walking the rows of each value of a with one counter per value of b, reset as it is read.

    `order` and `starts` are of `sort_rows`; a and `labels` stand in that order, b in the order of the rows. The more
    rows a code of a has, the lower it is: from the first that has one row on, all cells are of one row. y [rows] is
    of b's type.
    """
    K, low = len(starts) - 1, np.uint32((1 << bits) - 1)
    for i in range(len(order)):
        y[i] = b[order[i]]
    single = K
    for x in range(K):
        start, end = starts[x], starts[x + 1]
        if end - start == 1 and least > 1:
            single = x
            break
        for i in range(start, end):
            counter[y[i]] += np.uint64(1) + (np.uint64(labels[i]) << np.uint64(bits))
        for i in range(start, end):
            packed[i] = counter[y[i]]
            counter[y[i]] = 0
    found: Number = np.uint32(0)
    seen = len(order) - int(starts[single])
    for i in range(starts[single]):
        n = np.uint32(packed[i]) & low
        seen += int(n > 0)
        ck[found] = i
        found += np.uint32(n >= least)
    for c in range(found):
        row = np.uint32(ck[c])
        ca[c], cb[c], cn[c], ck[c] = a[row], y[row], np.uint32(packed[row]) & low, packed[row] >> np.uint64(bits)
    return found, seen


@native
def chance(cn: Array, ck: Array, seen: int, logs: Array, moments: Array, histogram: Array, out: Array) -> None:
    """Sums over cells for the joint column: out[:7] = cells, g, E, Var, Cov, Var k, and the rows of large cells.

    `logs` holds x ln x for small x, `moments` those of `scores.exact_moments`, [4, 513], the last three divided by
    (N-n)/(N-1). Of cells beyond, out[6] sums the rows and out[7] is the number. `seen` cells occur; those not given
    are of one row. `histogram`, int64 [513], is to work in.
    """
    known, small = len(logs), moments.shape[1]
    histogram[:] = 0
    histogram[1] = seen - len(cn)
    g = 0.0
    out[:] = 0.0
    for c in range(len(cn)):
        n, k = cn[c], ck[c]
        if n < small:
            histogram[n] += 1
        else:
            out[6] += n
            out[7] += 1.0
        if n < known:
            g += logs[k] + logs[n - k] - logs[n]
        else:
            g -= n * np.log(n)
            if k > 0:
                g += k * np.log(k)
            if n > k:
                g += (n - k) * np.log(n - k)
    out[0], out[1] = seen, g
    for n in range(small):
        for m in range(4):
            out[2 + m] += histogram[n] * moments[m, n]


@native
def frequent(ca: Array, cb: Array, cn: Array, ck: Array, na: Array, nb: Array, least: int) -> int:
    """Move the cells of values with at least `least` rows to the front; their number."""
    kept = 0
    for c in range(len(cn)):
        if na[ca[c]] >= least and nb[cb[c]] >= least:
            ca[kept], cb[kept], cn[kept], ck[kept] = ca[c], cb[c], cn[c], ck[c]
            kept += 1
    return kept


@native
def margins(c: Array, cn: Array, ck: Array, n: Array, k: Array, odds: Array) -> None:
    """Rows and positives of each value, and its odds: float64 [K] each."""
    n[:] = 0.0
    k[:] = 0.0
    for i in range(len(c)):
        n[c[i]] += cn[i]
        k[c[i]] += ck[i]
    for x in range(len(n)):
        odds[x] = k[x] / max(n[x] - k[x], 1e-9)


@native
def fit_additive(ca: Array, cb: Array, cn: Array, one: Array, other: Array, sweeps: int, tolerance: float) -> int:
    """Fit the odds u[a] * v[b] of each cell to the positives of every value, in place; the sweeps taken.

    Of `one` [5, Ka], row 1 holds the positives and row 2 is u; rows 3 and 4 are to work in. So is `other` for b.
    A sweep is one Newton step on the log odds for every value of a, then of b. It stops once a step gains less than
    `tolerance` squared standard errors per value.
    """
    u, v = one[2], other[2]
    for sweep in range(sweeps):
        worst = 0.0
        for side in range(2):
            work, where = (one, ca) if side == 0 else (other, cb)
            t, own, m, s = work[1], work[2], work[3], work[4]
            m[:] = 0.0
            s[:] = 0.0
            for c in range(len(cn)):
                odds = u[ca[c]] * v[cb[c]]
                q = odds / (1.0 + odds)
                m[where[c]] += cn[c] * q
                s[where[c]] += cn[c] * q * (1.0 - q)
            off = 0.0
            total = 0.0
            for x in range(len(own)):
                if s[x] > 1e-9:
                    step = (t[x] - m[x]) / s[x]
                    off += (t[x] - m[x]) * step
                    total += 1.0
                    own[x] *= np.exp(min(max(step, -_STEP), _STEP))
            worst = max(worst, off / max(total, 1.0))
        if worst < tolerance:
            return sweep + 1
    return sweeps


@native
def lever(ca: Array, cb: Array, cn: Array, one: Array, other: Array) -> float:
    """V; c / A of every value of a in one[3], c / B of b in other[3]: as the docstring of `pairs` defines them.

    Rows 0 and 2 hold the rows and the odds of every value.
    """
    u, v, A, B = one[2], other[2], one[3], other[3]
    A[:] = 0.0
    B[:] = 0.0
    for c in range(len(cn)):
        odds = u[ca[c]] * v[cb[c]]
        w = cn[c] * odds / (1.0 + odds) ** 2
        A[ca[c]] += w
        B[cb[c]] += w
    V = A.sum()
    for side in (one, other):
        n, W = side[0], side[3]
        for x in range(len(W)):
            W[x] = n[x] / ((n[x] - 1.0) * W[x]) if W[x] > 1e-9 and n[x] > 1 else 0.0
    return float(V)


@summing
def interaction(
    ca: Array, cb: Array, cn: Array, ck: Array, u: Array, v: Array, A: Array, B: Array, V: float, out: Array
) -> None:
    """out[:6] = S, L2, L3, U, V, and the pairs of rows in one cell, with the sums as `pairs` defines them.

    u is 0 for values that are left out; A and B come from `lever`.
    """
    S, L2, L3, U, together = 0.0, 0.0, 0.0, 0.0, 0.0
    all_rows = 1.0 / max(V, 1e-9)
    for c in range(len(cn)):
        n, k = float(cn[c]), float(ck[c])
        odds = u[ca[c]] * v[cb[c]]
        inverse = 1.0 / (1.0 + odds)
        q = odds * inverse
        s = q * inverse
        m = s * (A[ca[c]] + B[cb[c]] - all_rows)
        free = 1.0 - n * m
        counts = (n > 1.0) & (s >= 1e-9) & (free >= _FREE)
        pairs = n * (n - 1.0) if counts else 0.0
        weight = (1.0 if counts else 0.0) / (1.0 + n * s * _TEMPER)
        off = k - n * q
        S += weight * (off * off - k * (1.0 - 2.0 * q) - n * q * q + pairs * s * m)
        ws = weight * s
        l2 = ws * ws * pairs * free
        L2 += l2
        L3 += l2 * ws * np.sqrt(pairs)
        U += ws * s * pairs
        together += 0.5 * pairs
    out[0], out[1], out[2], out[3], out[4], out[5] = S, L2, L3, U, V, together


@native
def cells(
    a: Array,
    b: Array,
    labels: Array,
    order: Array,
    starts: Array,
    sorted_a: Array,
    sorted_labels: Array,
    Ka: int,
    Kb: int,
    counter: Array,
    bits: int,
    least: int,
    packed: Array,
    y: Array,
    ca: Array,
    cb: Array,
    cn: Array,
    ck: Array,
    numbers: Array,
) -> None:
    """numbers[:2] = what `cells_walk` returns, or without an order `cells_direct`."""
    if len(order) == 0:
        numbers[0], numbers[1] = cells_direct(a, b, labels, Ka, Kb, counter, bits, least, packed, ca, cb, cn, ck)
    else:
        numbers[0], numbers[1] = cells_walk(
            order, starts, sorted_a, b, sorted_labels, counter, bits, least, packed, y, ca, cb, cn, ck
        )


@native
def screen(
    ca: Array,
    cb: Array,
    cn: Array,
    ck: Array,
    numbers: Array,
    logs: Array,
    moments: Array,
    histogram: Array,
    odds_a: Array,
    odds_b: Array,
    lever_a: Array,
    lever_b: Array,
    V: float,
    out: Array,
) -> None:
    """`chance` and `interaction` of what `cells` found, about odds that were not fitted: out [14]."""
    m = numbers[0]
    ca, cb, cn, ck = ca[:m], cb[:m], cn[:m], ck[:m]
    chance(cn, ck, numbers[1], logs, moments, histogram, out[:8])
    interaction(ca, cb, cn, ck, odds_a, odds_b, lever_a, lever_b, V, out[8:])


@native
def fit(
    ca: Array,
    cb: Array,
    cn: Array,
    ck: Array,
    na: Array,
    nb: Array,
    logs: Array,
    moments: Array,
    histogram: Array,
    least: int,
    sweeps: int,
    tolerance: float,
    one: Array,
    other: Array,
    out: Array,
) -> None:
    """`chance` of all cells, and `interaction` about an additive fit of the values with `least` rows: out [14].

    na and nb, [K], are the rows of each value; one [5, Ka] and other [5, Kb] are to work in. The cells are reordered.
    """
    chance(cn, ck, len(cn), logs, moments, histogram, out[:8])
    out[8:] = 0.0
    m = frequent(ca, cb, cn, ck, na, nb, least)
    ca, cb, cn, ck = ca[:m], cb[:m], cn[:m], ck[:m]
    margins(ca, cn, ck, one[0], one[1], one[2])
    margins(cb, cn, ck, other[0], other[1], other[2])
    rows, ones = one[0].sum(), one[1].sum()
    if ones == 0.0 or ones == rows:
        return
    for x in range(other.shape[1]):
        other[2, x] /= ones / (rows - ones)
    fit_additive(ca, cb, cn, one, other, sweeps, tolerance)
    V = lever(ca, cb, cn, one, other)
    interaction(ca, cb, cn, ck, one[2], other[2], one[3], other[3], V, out[8:])
