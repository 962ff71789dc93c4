"""Compiled loops over rows and cells. Importing this module imports numba, so it is imported where it is needed only.

Every kernel releases the GIL: threads run them side by side. A cell is a pair of values that occurs; its n rows hold
k positive ones. What indexes arrays is unsigned: numba would look whether a signed number is negative, each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])

_BLOCK = 4096  # rows
_IN_PARTS = 1 << 13  # cells: four tables of them stand in the second cache
_TEMPER = 0.1
_FREE = 0.05  # less of a cell is free where one value all but fixes the other: it shows no interaction
_STEP = 2.0

# numpy's model of errors: a look at each divisor would keep a loop from taking several cells at a time.
_compiled: Callable[[F], F] = numba.njit(cache=True, nogil=True, error_model="numpy")
# Sums may be taken in any order.
_summed: Callable[[F], F] = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"}
)


@_compiled
def count_column(codes: Array, labels: Array, table: Array) -> None:
    """Add rows to table [K, L] by code and class.

    The cells of a block of rows are found first, several at a time. Small tables are counted in four parts, so that
    equal neighbours do not wait on each other; the counters are half as large as those of the table.
    """
    K, L = table.shape
    if len(codes) < K * L:
        for i in range(len(codes)):
            table[codes[i], labels[i]] += 1
        return
    part = np.zeros((4 if K * L <= _IN_PARTS else 1, K * L), np.uint32)
    first, second, third, fourth = part[0], part[1 % len(part)], part[2 % len(part)], part[3 % len(part)]
    cell = np.empty(_BLOCK, np.uint32)
    whole = len(codes) // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):
        block, classes = codes[start : start + _BLOCK], labels[start : start + _BLOCK]
        for i in range(_BLOCK):
            cell[i] = block[i] * L + classes[i]
        for i in range(0, _BLOCK, 4):
            first[cell[i]] += 1
            second[cell[i + 1]] += 1
            third[cell[i + 2]] += 1
            fourth[cell[i + 3]] += 1
    for i in range(whole, len(codes)):
        first[codes[i] * L + labels[i]] += 1
    for p in range(len(part)):
        for c in range(K * L):
            table[c // L, c % L] += part[p, c]


@_compiled
def count_column_weighted(codes: Array, labels: Array, weights: Array, table: Array) -> None:
    """Add the weights of rows to table [K, L] by code and class."""
    for i in range(len(codes)):
        table[codes[i], labels[i]] += weights[i]


@_compiled
def sort_rows(codes: Array, K: int) -> tuple[Array, Array]:
    """Counting sort: the rows in the order of their codes, uint32 [rows], and where each code starts, [K + 1]."""
    starts = np.zeros(K + 1, np.uint32)
    for code in codes:
        starts[code + 1] += 1
    for value in range(K):
        starts[value + 1] += starts[value]
    place = starts[:-1].copy()
    order = np.empty(len(codes), np.uint32)
    for row in range(len(codes)):
        order[place[codes[row]]] = row
        place[codes[row]] += 1
    return order, starts


@_compiled
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
    found: Any = np.uint32(0)
    seen = 0
    low = np.uint32((1 << bits) - 1)
    for x in range(np.uint32(Ka)):
        first = found
        for y in range(np.uint32(Kb)):
            c: Any = x * np.uint32(Kb) + y
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


@_compiled
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
    ca: Array,
    cb: Array,
    cn: Array,
    ck: Array,
) -> tuple[int, int]:
    """As `cells_direct`, walking the rows of each value of a with one counter per value of b, reset as it is read.

    `order` and `starts` are of `sort_rows`; a and `labels` stand in that order, b in the order of the rows. The more
    rows a code of a has, the lower it is: from the first that has one row on, all cells are of one row.
    """
    K, low = len(starts) - 1, np.uint32((1 << bits) - 1)
    y = np.empty(len(order), b.dtype)
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
    found: Any = np.uint32(0)
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


@_compiled
def chance(cn: Array, ck: Array, seen: int, logs: Array, moments: Array, out: Array) -> None:
    """Sums over cells for the joint column: out[:7] = cells, g, E, Var, Cov, Var k, and the rows of large cells.

    `logs` holds x ln x for small x, `moments` those of `scores.exact_moments`, [4, 513], the last three divided by
    (N-n)/(N-1). Of cells beyond, out[6] sums the rows and out[7] is the number. `seen` cells occur; those not given
    are of one row.
    """
    known, small = len(logs), moments.shape[1]
    histogram = np.zeros(small, np.int64)
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


@_compiled
def frequent(ca: Array, cb: Array, cn: Array, ck: Array, na: Array, nb: Array, least: int) -> int:
    """Move the cells of values with at least `least` rows to the front; their number."""
    kept = 0
    for c in range(len(cn)):
        if na[ca[c]] >= least and nb[cb[c]] >= least:
            ca[kept], cb[kept], cn[kept], ck[kept] = ca[c], cb[c], cn[c], ck[c]
            kept += 1
    return kept


@_compiled
def margins(c: Array, cn: Array, ck: Array, K: int) -> tuple[Array, Array, Array]:
    """Rows and positives of each value, and its odds: float64 [K] each."""
    n, k, odds = np.zeros(K), np.zeros(K), np.zeros(K)
    for i in range(len(c)):
        n[c[i]] += cn[i]
        k[c[i]] += ck[i]
    for x in range(K):
        odds[x] = k[x] / max(n[x] - k[x], 1e-9)
    return n, k, odds


@_compiled
def fit_additive(
    ca: Array, cb: Array, cn: Array, ta: Array, tb: Array, u: Array, v: Array, sweeps: int, tolerance: float
) -> int:
    """Fit the odds u[a] * v[b] of each cell to ta and tb, the positives of every value, in place; the sweeps taken.

    A sweep is one Newton step on the log odds for every value of a, then of b. It stops once a step gains less than
    `tolerance` squared standard errors per value.
    """
    target = (ta, tb)
    mean, spread = (np.empty(len(u)), np.empty(len(v))), (np.empty(len(u)), np.empty(len(v)))
    for sweep in range(sweeps):
        worst = 0.0
        for side in range(2):
            own, where = (u, ca) if side == 0 else (v, cb)
            m, s, t = mean[side], spread[side], target[side]
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


@_compiled
def lever(ca: Array, cb: Array, cn: Array, na: Array, nb: Array, u: Array, v: Array) -> tuple[Array, Array, float]:
    """c / A of every value of a, c / B of b, and V: as the docstring of `pairs` defines them."""
    A, B = np.zeros(len(u)), np.zeros(len(v))
    for c in range(len(cn)):
        odds = u[ca[c]] * v[cb[c]]
        w = cn[c] * odds / (1.0 + odds) ** 2
        A[ca[c]] += w
        B[cb[c]] += w
    V = A.sum()
    for n, W in ((na, A), (nb, B)):
        for x in range(len(W)):
            W[x] = n[x] / ((n[x] - 1.0) * W[x]) if W[x] > 1e-9 and n[x] > 1 else 0.0
    return A, B, V


@_summed
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


@_compiled
def fit_interaction(
    ca: Array,
    cb: Array,
    cn: Array,
    ck: Array,
    na: Array,
    nb: Array,
    least: int,
    sweeps: int,
    tolerance: float,
    out: Array,
) -> None:
    """`interaction` about an additive fit of the values with `least` rows; na and nb, [K], are the rows of each value.

    The cells are reordered.
    """
    out[:] = 0.0
    m = frequent(ca, cb, cn, ck, na, nb, least)
    ca, cb, cn, ck = ca[:m], cb[:m], cn[:m], ck[:m]
    n_a, k_a, u = margins(ca, cn, ck, len(na))
    n_b, k_b, v = margins(cb, cn, ck, len(nb))
    rows, ones = n_a.sum(), k_a.sum()
    if ones == 0.0 or ones == rows:
        return
    v /= ones / (rows - ones)
    fit_additive(ca, cb, cn, k_a, k_b, u, v, sweeps, tolerance)
    A, B, V = lever(ca, cb, cn, n_a, n_b, u, v)
    interaction(ca, cb, cn, ck, u, v, A, B, V, out)


def warm() -> None:
    """Make numba load what its first call needs, some 0.4 s."""
    sort_rows(np.zeros(1, np.uint16), 1)
