"""Coloring: the columns, or rows, of a Jacobian that one pass can evaluate together.

    color : Pattern -> Coloring

One product with a vector of zeros and ones *compresses* columns that have no row in common: `J (e_1
+ e_4)` shows both columns at once, each in rows of its own.  The least number of such products is
a problem of coloring a graph, which is NP-hard, and a greedy algorithm does well: each column gets
the first color that no earlier column with a common row has (Curtis, Powell and Reid 1974; Coleman
and Moré 1983).  The order matters, and we take the best of several.

    columns      one product `J s` (forward mode) for each color
    rows         one product `s^T J` (reverse mode) for each color
    both         dense rows by reverse mode, and all others by columns; or dense columns by forward
    symmetric    for a Hessian: read each element at (i, j) or at (j, i); a *star coloring*

In a star coloring neighbors differ, and each path over four vertices has three colors (Coleman and
Moré 1984; Gebremedhin, Manne and Pothen, *What color is your Jacobian?*, SIAM Review 47, 2005).

Read next: `evaluation.py`, Jacobians and Hessians.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from functrans.errors.wording import counted
from functrans.sparse import checks
from functrans.sparse.patterns import Pattern

NONE = -1
"""The color of a column, or a row, in no product."""

LONGEST = 64
"""How many points a stencil may have."""


class Coloring:
    """A pattern, with colors for its columns and rows; one pass evaluates all those of one color.

    Args:
      pattern: a `Pattern`.
      columns: the color of each column, from 0; -1 for a column that no forward pass evaluates.
      rows: the color of each row, from 0; -1 for a row that no reverse pass evaluates.
      symmetric: whether an element may be read in the place of its mirror image.

    Raises:
      ValueError: if the passes do not determine some element.

    >>> import numpy as np
    >>> from functrans import sparse
    >>> sparse.Coloring(sparse.Pattern(np.eye(3)), columns=[0, 0, 0], rows=[-1, -1, -1])
    Coloring(3 x 3: 1 forward pass instead of 3)
    """

    def __init__(self, pattern: Pattern, columns: Any, rows: Any, symmetric: bool = False):
        self.pattern, self.symmetric = pattern, symmetric
        m, n = pattern.shape
        self.columns, self.rows = (
            checks.colors(columns, n, "columns"),
            checks.colors(rows, m, "rows"),
        )
        self.forward, self.reverse = _count(self.columns), _count(self.rows)
        checks.all_read(self.places, pattern.rows, pattern.columns)

    @functools.cached_property
    def places(self) -> np.ndarray:
        """The place of each nonzero: in the forward products, one after another, and then in the
        reverse products."""
        m, n = self.pattern.shape
        i, j = self.pattern.rows.astype(np.int64), self.pattern.columns.astype(np.int64)
        found = np.full(i.size, NONE, np.int64)
        # An element is alone in its product if no other of its row is in a column of that color.
        of_column, of_row = self.columns[j] * m + i, self.rows[i] * n + j
        if self.symmetric:
            mirrored = self.columns[i] * m + j
            ways = [(mirrored, _alone(mirrored, self.columns[i]))]
        else:
            ways = [(of_row + self.forward * m, _alone(of_row, self.rows[i]))]
        for place, is_alone in [*ways, (of_column, _alone(of_column, self.columns[j]))]:
            found[is_alone] = place[is_alone]
        return found.astype(np.int32) if found.size == 0 or found.max() < 2**31 else found

    @property
    def passes(self) -> int:
        """The number of passes, forward and reverse."""
        return self.forward + self.reverse

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Coloring):
            return NotImplemented
        parts = ((c.pattern, c.symmetric, c.columns.tobytes(), c.rows.tobytes())
                 for c in (self, other))  # fmt: skip
        return next(parts) == next(parts)

    def __hash__(self) -> int:
        return hash((self.pattern, self.passes, self.symmetric))

    def __repr__(self) -> str:
        m, n = self.pattern.shape
        counts = [(self.forward, "forward"), (self.reverse, "reverse")]
        if self.symmetric:
            counts = [(self.forward, "forward-over-reverse")]
        said = " and ".join(counted(count, f"{mode} pass") for count, mode in counts if count)
        dense = n if self.symmetric else min(m, n)
        return f"Coloring({m:,} x {n:,}: {said or 'no passes'} instead of {dense:,})"

    def show(self, width: int = 48) -> None:
        """Print the pattern, at most `width` characters wide, and what the coloring saves."""
        self.pattern.show(width)
        print(self)

    def save(self, path: Any) -> None:
        """Write the pattern and the colors to a file in NumPy's format, `.npz`."""
        matrix, m = self.pattern.matrix, self.pattern.shape
        parts = {"indices": matrix.indices, "indptr": matrix.indptr, "shape": m}
        parts |= {"columns": self.columns, "rows": self.rows, "symmetric": self.symmetric}
        np.savez_compressed(path, **parts)

    @classmethod
    def load(cls, path: Any) -> Coloring:
        """Read a coloring from a file that `save` wrote."""
        with np.load(path) as file:
            ones = np.ones(file["indices"].size, bool)
            parts = ones, file["indices"], file["indptr"]
            pattern = Pattern(sparse.csr_array(parts, shape=tuple(file["shape"])))
            return cls(pattern, file["columns"], file["rows"], bool(file["symmetric"]))


def _count(colors: np.ndarray) -> int:
    return int(colors.max(initial=NONE)) + 1


def _alone(keys: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Whether an element has a color, and its key is that of no other element."""
    has_color = colors >= 0
    if not has_color.any():
        return has_color
    counts = np.bincount(keys[has_color])
    return has_color & (counts[np.where(has_color, keys, 0)] == 1)


# ---- the public function -------------------------------------------------------------------------


def color(pattern: Any, mode: str = "auto") -> Coloring:
    """Color the columns or the rows of a matrix, so that a few products give all of its elements.

    Args:
      pattern: a `Pattern`, or a matrix of which one can be made.
      mode: `"columns"`, `"rows"`, `"both"`, `"symmetric"`; or `"auto"`, for the one of the first
        three with the fewest colors.

    Returns:
      A `Coloring`.

    Raises:
      ValueError: if there is no such mode, or if `"symmetric"` gets a matrix that is not symmetric.

    Sources: A. H. Gebremedhin, F. Manne and A. Pothen, What color is your Jacobian? Graph coloring
    for computing derivatives, SIAM Review 47 (2005); A. Griewank and A. Walther, Evaluating
    Derivatives (2008), chapters 7 and 8.

    >>> import numpy as np
    >>> from functrans import sparse
    >>> sparse.color(np.eye(100) + np.eye(100, k=1))
    Coloring(100 x 100: 2 forward passes instead of 100)
    >>> arrow = np.eye(100)
    >>> arrow[0] = arrow[:, 0] = 1
    >>> sparse.color(arrow)
    Coloring(100 x 100: 2 forward passes and 1 reverse pass instead of 100)
    >>> sparse.color(arrow, "symmetric")
    Coloring(100 x 100: 2 forward-over-reverse passes instead of 100)
    """
    pattern = Pattern(pattern)
    if mode == "symmetric":
        return _symmetric(pattern)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {[*MODES, 'symmetric']}, and is {mode!r}")
    return min(MODES[mode](pattern), key=lambda found: found.passes)


def _columns(pattern: Pattern) -> list[Coloring]:
    return [Coloring(pattern, best(pattern.matrix), np.full(pattern.shape[0], NONE))]


def _rows(pattern: Pattern) -> list[Coloring]:
    return [Coloring(pattern, np.full(pattern.shape[1], NONE), best(pattern.matrix.T))]


def _auto(pattern: Pattern) -> list[Coloring]:
    """Each way, unless the length of a row or of a column shows that it cannot win."""
    ways = [(_longest(pattern.matrix), _columns)]
    if pattern != pattern.T:
        ways.append((_longest(pattern.matrix.T), _rows))
    found = _both(pattern, min(bound for bound, _ in ways) + 1)
    for bound, way in sorted(ways, key=lambda pair: pair[0]):
        if not found or bound < min(c.passes for c in found):
            found += way(pattern)
    return found


def _longest(matrix: Any) -> int:
    return int(np.diff(sparse.csr_array(matrix).indptr).max(initial=0))


def _both(pattern: Pattern, fewest: int | None = None) -> list[Coloring]:
    """The longest rows by reverse products and all others by forward ones; and the reverse."""
    found = [Coloring(pattern, columns, rows) for columns, rows in _split(pattern.matrix, fewest)]
    mirrored = _split(sparse.csr_array(pattern.matrix.T), fewest)
    return [*found, *(Coloring(pattern, columns, rows) for rows, columns in mirrored)]


def _split(matrix: Any, fewest: int | None) -> list[tuple]:
    """Colors for the columns without the longest rows, and for these rows; the best such pair."""
    lengths = np.diff(matrix.indptr)
    by_length = np.argsort(-lengths, kind="stable")
    best_pair: list[tuple] = []
    limit, count = fewest or matrix.shape[0] + matrix.shape[1], 1
    # Where one of several ways is to be chosen, only rows that are much longer make this one pay.
    most = lengths.max(initial=0) // 2 if fewest else lengths.max(initial=0) - 1
    while count < min(limit, matrix.shape[0]):
        others = lengths[by_length[count]]
        if others <= most and others < limit - 1:
            is_long = np.zeros(matrix.shape[0], bool)
            is_long[by_length[:count]] = True
            rows = np.full(matrix.shape[0], NONE)
            rows[is_long] = best(matrix[is_long].T)
            columns = best(matrix[~is_long])
            passes = _count(rows) + _count(columns)
            if passes < limit:
                limit, best_pair = passes, [(columns, rows)]
        count *= 2
    return best_pair


MODES: dict[str, Callable[[Pattern], list[Coloring]]] = {
    "auto": _auto,
    "columns": _columns,
    "rows": _rows,
    "both": lambda pattern: _both(pattern) or _auto(pattern),
}


def _symmetric(pattern: Pattern) -> Coloring:
    matrix = pattern.matrix
    checks.symmetric(matrix)
    is_off = pattern.rows != pattern.columns
    edges = np.ones(int(is_off.sum()), bool), (pattern.rows[is_off], pattern.columns[is_off])
    graph = sparse.csr_array(edges, shape=matrix.shape)
    candidates = [stars(graph, order) for order in _orders(graph)]
    if _longest(matrix) < min(map(_count, candidates)):
        candidates.append(best(matrix))  # columns without a common row have no mirror image, too
    colors = min(candidates, key=_count)
    return Coloring(pattern, colors, np.full(colors.size, NONE), symmetric=True)


# ---- greedy algorithms ---------------------------------------------------------------------------


def best(matrix: Any) -> np.ndarray:
    """Colors for the columns such that no two of one color share a row; the best of those tried."""
    matrix = sparse.csc_array(matrix)
    rows = sparse.csr_array(matrix)
    rows.sort_indices()
    longest = _longest(rows)
    if (colors := of_grid(rows, longest)) is not None:  # there cannot be fewer
        return colors
    found = []
    for order in _orders(matrix):
        found.append(greedy(matrix, order))
        if _count(found[-1]) <= longest:
            break
    return min(found, key=_count)


def _orders(matrix: Any) -> Iterable[np.ndarray]:
    """The natural order, and the longest columns first."""
    lengths = np.diff(matrix.indptr)
    yield np.arange(lengths.size)
    if lengths.size and lengths.min() < lengths.max():
        yield np.argsort(-lengths, kind="stable")


# Where all rows read a grid at the same offsets, a greedy algorithm seldom finds the fewest colors.
# A linear function of the coordinates, modulo k, does: i + 2j mod 5 for the five points of a cross.
def of_grid(rows: Any, k: int) -> np.ndarray | None:
    """Colors of a stencil, as many as its longest row has elements, or `None` (Goldfarb and Toint,
    *Optimal estimation of Jacobian and Hessian matrices that arise in finite difference
    calculations*, 1984)."""
    longest, size = np.flatnonzero(np.diff(rows.indptr) == k), rows.shape[1]
    if not 0 < k <= LONGEST:
        return None
    start = rows.indptr[longest[longest.size // 2]]
    row = rows.indices[start : start + k]
    keys = np.repeat(np.arange(rows.shape[0]) * k, np.diff(rows.indptr))
    for strides in {_strides(row - row[i], size) for i in range(k)}:
        if k ** len(strides) > LONGEST**3:
            continue
        factors = np.indices((k,) * len(strides)).reshape(len(strides), -1).T
        colors = np.sort(factors @ coordinates(row, strides, size) % k)
        for a in factors[(np.diff(colors) > 0).all(1)][:16]:
            colors = a @ coordinates(np.arange(size), strides, size) % k
            if np.bincount(keys + colors[rows.indices]).max() == 1:
                return colors.astype(np.int32)
    return None


def _strides(offsets: np.ndarray, size: int) -> tuple[int, ...]:
    """How far the neighbors in each dimension of a grid are apart: each divides the next one."""
    strides = [1]
    for offset in offsets.tolist():
        if offset > strides[-1] and offset % strides[-1] == 0 and size % offset == 0:
            strides.append(offset)
    return tuple(strides)


def coordinates(numbers: np.ndarray, strides: tuple[int, ...], size: int) -> np.ndarray:
    lengths = [b // a for a, b in pairwise([*strides, size])]
    return np.stack([numbers // s % n for s, n in zip(strides, lengths, strict=True)])


# A set of colors is an integer with a bit for each of them.
def greedy(matrix: Any, order: np.ndarray) -> np.ndarray:
    """The first color for each column that no other column has in any of its rows."""
    starts, indices = matrix.indptr.tolist(), matrix.indices.tolist()
    colors, used = np.zeros(matrix.shape[1], np.int32), [0] * matrix.shape[0]
    for j in order.tolist():
        rows, taken = indices[starts[j] : starts[j + 1]], 0
        for i in rows:
            taken |= used[i]
        bit = ~taken & (taken + 1)
        for i in rows:
            used[i] |= bit
        colors[j] = bit.bit_length() - 1 if rows else NONE
    return colors


# A vertex v may not have the color of a neighbor w; nor that of a vertex x beside w, if there is a
# path of four vertices in two colors: v w x y, where x has another neighbor y of the color of w; or
# y v w x, where v has another neighbor y of that color. For the first, `ends[w]` has the colors of
# all x beside w that have another neighbor of the color of w, and `near[w]` those of all of them.
def stars(graph: Any, order: np.ndarray) -> np.ndarray:
    """A star coloring of a symmetric graph, vertex by vertex: the first color that makes no such
    path (Gebremedhin, Tarafdar, Manne and Pothen 2007)."""
    starts, indices = graph.indptr.tolist(), graph.indices.tolist()
    size = graph.shape[0]
    bits, near, ends = [0] * size, [0] * size, [0] * size
    first: dict[tuple[int, int], int] = {}  # (vertex, color) -> its first neighbor of that color
    for v in order.tolist():
        neighbors = indices[starts[v] : starts[v + 1]]
        seen = twice = taken = 0
        for w in neighbors:
            twice |= seen & bits[w]
            seen |= bits[w]
            taken |= ends[w]
        taken |= seen
        alike = [w for w in neighbors if bits[w] & twice] if twice else []
        for w in alike:
            taken |= near[w]
        bits[v] = bit = ~taken & (taken + 1)
        for w in alike:
            ends[w] |= bit
        for x in neighbors:
            if not near[x] & bit:
                near[x] |= bit
                first[x, bit] = v
            elif bits[x]:
                ends[v] |= bits[x]
                ends[first[x, bit]] |= bits[x]
    return np.array([bit.bit_length() - 1 for bit in bits], np.int32)
