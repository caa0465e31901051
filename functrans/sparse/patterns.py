"""A pattern: the elements of a matrix that may differ from zero.

    Pattern m n    =    a subset of the pairs (i, j), kept as compressed rows

Every other element *is* zero, for all inputs of the function whose Jacobian the matrix is.  A
pattern is a value: you can print, save and load it, and make it of any matrix.

Read next: `numbers.py`, numbers that show how elements move.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from functrans.errors.wording import counted
from functrans.sparse import checks


class Pattern:
    """The elements of a matrix that may differ from zero.

    Args:
      matrix: an array, a matrix in a format of SciPy, or a `BCOO`, whose nonzero or stored elements
        make the pattern; or a `Pattern`.

    >>> import numpy as np
    >>> from functrans import sparse
    >>> pattern = sparse.Pattern(np.eye(8) + np.eye(8, k=2))
    >>> pattern
    Pattern(8 x 8, 14 nonzeros, 21.9%)
    >>> pattern.show()
    ⠑⢕⢄⠀
    ⠀⠀⠑⢕
    """

    def __init__(self, matrix: Any):
        if isinstance(matrix, Pattern):
            matrix = matrix.matrix
        elif hasattr(matrix, "indices") and hasattr(matrix, "todense"):
            matrix = _of_bcoo(matrix) if not sparse.issparse(matrix) else matrix
        found = sparse.csr_array(checks.matrix(matrix))
        self.matrix: Any = sparse.csr_array(
            (np.ones(found.nnz, bool), found.indices, found.indptr), shape=found.shape
        )
        self.matrix.sum_duplicates()
        self.matrix.sort_indices()

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of columns."""
        return self.matrix.shape

    @property
    def nnz(self) -> int:
        """The number of elements that may differ from zero."""
        return int(self.matrix.nnz)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The row of each nonzero, an array of integers; they go row by row, and along each row."""
        counts = np.diff(self.matrix.indptr)
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), counts)

    @property
    def columns(self) -> np.ndarray:
        """The column of each nonzero, an array of integers."""
        return self.matrix.indices

    @property
    def T(self) -> Pattern:
        """The pattern of the transposed matrix."""
        return Pattern(self.matrix.T)

    def dense(self) -> np.ndarray:
        """An array of booleans, of the shape of the matrix."""
        return self.matrix.toarray()

    def csr(self, values: Any) -> Any:
        """A SciPy matrix of compressed rows, from its nonzeros in the order of the pattern."""
        if np.shape(values) != (self.nnz,):
            raise ValueError(
                f"csr: the values must be {self.nnz:,}, one for each nonzero of the pattern, and "
                f'have the shape {np.shape(values)}. format="values" gives them in this order.'
            )
        parts = np.asarray(values), self.matrix.indices, self.matrix.indptr
        return sparse.csr_array(parts, shape=self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern) or self.shape != other.shape:
            return NotImplemented if not isinstance(other, Pattern) else False
        mine, theirs = self.matrix, other.matrix
        return np.array_equal(mine.indptr, theirs.indptr) and np.array_equal(
            mine.indices, theirs.indices
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.nnz))

    def __repr__(self) -> str:
        (m, n), share = self.shape, self.nnz / max(self.shape[0] * self.shape[1], 1)
        return f"Pattern({m:,} x {n:,}, {counted(self.nnz, 'nonzero')}, {share:.1%})"

    # ---- files -----------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the pattern to a file, in the format of `scipy.sparse.save_npz`."""
        sparse.save_npz(path, self.matrix)

    @classmethod
    def load(cls, path: Any) -> Pattern:
        """Read a pattern, or any matrix, from a file that `scipy.sparse.save_npz` wrote."""
        return cls(sparse.load_npz(Path(path)))

    # ---- pictures --------------------------------------------------------------------------------

    def show(self, width: int = 48) -> None:
        """Print the pattern as a picture, at most `width` characters wide.

        Each character is a block of 2 x 4 dots. A large matrix is drawn at a smaller scale; a dot
        then stands for several elements, at least one of which is a nonzero.
        """
        print("\n".join(braille(self.picture(2 * width, 4 * width))))

    def picture(self, width: int, height: int) -> np.ndarray:
        """An array of booleans of at most this width and height: the pattern, scaled down."""
        m, n = self.shape
        scale = max(1.0, n / width, m / height)
        shape = max(1, int(np.ceil(m / scale))), max(1, int(np.ceil(n / scale)))
        dots = np.zeros(shape, bool)
        dots[(self.rows / scale).astype(int), (self.columns / scale).astype(int)] = True
        return dots

    def _repr_svg_(self) -> str:
        return svg(self.picture(256, 256))


def _of_bcoo(matrix: Any) -> Any:
    i, j = np.asarray(matrix.indices).T
    inside = (i < matrix.shape[0]) & (j < matrix.shape[1])  # what lies outside is padding
    ones = np.ones(int(inside.sum()), bool)
    return sparse.csr_array((ones, (i[inside], j[inside])), shape=matrix.shape)


# Unicode numbers the dots of a character 1 2 3 7 from above in the left column, 4 5 6 8 in the
# right one; dot k adds 2^(k-1).
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


def braille(dots: np.ndarray) -> list[str]:
    """Lines of characters, each of which is a block of 4 x 2 dots."""
    m, n = dots.shape
    padded = np.pad(dots, [(0, -m % 4), (0, -n % 2)])
    blocks = padded.reshape(padded.shape[0] // 4, 4, padded.shape[1] // 2, 2)
    codes = 0x2800 + np.einsum("iajb,ab->ij", blocks.astype(int), DOTS)
    return ["".join(map(chr, line)) for line in codes]


def svg(dots: np.ndarray, size: int = 240) -> str:
    """A drawing in which each dot is a square, and a run of them in a row one rectangle."""
    m, n = dots.shape
    edges = np.diff(np.pad(dots, [(0, 0), (1, 1)]).astype(int))
    (rows, begins), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    runs = zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True)
    path = "".join(f"M{a} {i}h{b - a}v1h{a - b}z" for i, a, b in runs)
    scale = size / max(m, n)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{n * scale:.0f}" height="{m * scale:.0f}" '
        f'viewBox="0 0 {n} {m}"><rect width="{n}" height="{m}" fill="#f4f4f4"/>'
        f'<path d="{path}" fill="#1f4e79"/></svg>'
    )
