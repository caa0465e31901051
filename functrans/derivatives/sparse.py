"""The sparse arrays of `jax.experimental.sparse`: values, and the places where they stand.

    a = E d        E puts value k at place c_k, and adds up those that meet there
    d = E^T a      its transpose reads at these places, and 0 outside of the array

The places are integers and have no derivative.  So a format is a way to write down E, a conversion
is E or E^T, and a product of a sparse and a dense array is, with its answer, the form

    <d, x, y>  =  sum_k  d_k x[c_k] y[c_k]

which is linear in each of the three: the cotangent of one is made of the other two, and a rule
makes no dense array that was not there.  The rules are declared once the module has been imported.

Read next: `../control_flow/__init__.py`, the primitives that carry jaxprs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functrans.derivatives.common import add, cast_like, when_imported
from functrans.rules import General, Zero, call, general, instantiate, linear, multilinear

# ---- places --------------------------------------------------------------------------------------


class Places:
    """The map E for values with these indices, in an array of this shape.

    Each value has an index for each of the first dimensions. It may itself be an array, over the
    other dimensions, which are dense. The values are numbered by batch, and within it. In a product
    of arrays, each dimension has a label: those of the array with the values are 0, 1, 2, ...
    """

    def __init__(self, indices: Any, shape: Sequence[int]):
        batch, (count, width) = shape[: indices.ndim - 2], indices.shape[-2:]
        self.numbers, self.shape = (*batch, count), tuple(shape)
        grid = [lax.broadcasted_iota(indices.dtype, self.numbers, i) for i in range(len(batch))]
        columns = [jnp.broadcast_to(indices[..., i], self.numbers) for i in range(width)]
        self.at = [*grid, *columns]
        self.numbered = [40 + i for i in range(len(self.numbers))]  # labels that nothing else has
        self.dense = list(range(len(self.at), len(shape)))
        self.labels = [*self.numbered, *self.dense]  # those of the values

    def order(self, labels: Sequence[int]) -> tuple[list[int], list]:
        """An order in which the dimensions with indices come first; and these indices."""
        first = [i for i, label in enumerate(labels) if label < len(self.at)]
        rest = [i for i, label in enumerate(labels) if label >= len(self.at)]
        return [*first, *rest], [self.at[labels[i]] for i in first]

    def read(self, x: Any, labels: Sequence[int]) -> tuple[Any, list[int]]:
        """`E^T x`, the entry of `x` at the place of each value; and the labels of the result."""
        order, at = self.order(labels)
        x, rest = jnp.transpose(x, order), [labels[i] for i in order[len(at) :]]
        if at:
            found = x.at[tuple(at)].get(mode="fill", fill_value=0)
        else:
            found = jnp.broadcast_to(x, (*self.numbers, *x.shape))
        return found, [*self.numbered, *rest]

    def write(self, d: Any, labels: Sequence[int], shape: Sequence[int]) -> Any:
        """`E d`: an array with these labels, of this shape."""
        order, at = self.order(labels)
        ordered = [shape[i] for i in order]
        if at:
            x = jnp.zeros(ordered, d.dtype).at[tuple(at)].add(d, mode="drop")
        else:
            x = jnp.sum(d, tuple(range(len(self.numbers))))
        return jnp.transpose(x, [order.index(i) for i in range(len(order))])

    def values(self, x: tuple, y: tuple, like: Any) -> Any:
        """The cotangent of d in `<d, x, y>`; an array comes with its labels."""
        return self.fit(einsum(self.read(*x), self.read(*y), self.labels), like)

    def array(self, d: Any, y: tuple, labels: Sequence[int], like: Any) -> Any:
        """The cotangent of x in `<d, x, y>`, which has these labels."""
        d = jnp.broadcast_to(d, (*self.numbers, *(self.shape[i] for i in self.dense)))
        order, at = self.order(labels)
        kept = [*self.numbered, *(labels[i] for i in order[len(at) :])]
        terms = einsum((d, self.labels), self.read(*y), kept)
        return cast_like(self.write(terms, labels, like.shape), like)

    def fit(self, d: Any, like: Any) -> Any:
        """The sum over batches that share their values."""
        shared = tuple(i for i, n in enumerate(like.shape) if n != d.shape[i])
        return cast_like(jnp.sum(d, shared, keepdims=True) if shared else d, like)


def einsum(x: tuple, y: tuple, labels: Sequence[int]) -> Any:
    return jnp.einsum(*x, *y, labels, precision=lax.Precision.HIGHEST)


# ---- formats: from what is stored of the places to an array of indices ---------------------------


def of_coordinates(indices):
    return indices


def of_row_and_column(row, column):
    return jnp.stack([row, column], -1)


# The values of a row stand together, and row i begins at pointer i: the row of value k is the
# number of pointers up to k, less one. Values behind the last pointer get a row that does not
# exist, where nothing is read.
def of_pointers(columns, pointers):
    *batch, _ = pointers.shape
    starts = Places(pointers[..., None], (*batch, columns.shape[-1]))
    ones = jnp.ones(pointers.shape, columns.dtype)
    begun = starts.write(ones, range(len(batch) + 1), (*batch, columns.shape[-1]))
    return jnp.stack(jnp.broadcast_arrays(jnp.cumsum(begun, -1) - 1, columns), -1)


def of_pointers_to_columns(rows, pointers):
    return of_pointers(rows, pointers)[..., ::-1]


# ---- conversions ---------------------------------------------------------------------------------


def declare_todense(primitive: Any, indices_of: Callable, count: int) -> None:
    """`y = E d`."""

    def transpose(y_bar, d, *structure):
        return read_at(y_bar, indices_of(*structure), d)

    multilinear(primitive, transpose, *[None] * count)


def read_at(y_bar: Any, indices: Any, d: Any) -> Any:
    places = Places(indices, y_bar.shape)
    return places.fit(places.read(y_bar, range(y_bar.ndim))[0], d)


def declare_extract(primitive: Any, indices_of: Callable, count: int) -> None:
    """`d = E^T a`. With `assume_unique=False` the operation reads only the first value at a place;
    the entries that it reads from an array of ones tell which."""

    def transpose(d_bar, *inputs, **params):
        *structure, a = inputs
        if not params.get("assume_unique", True):
            ones = jnp.ones(a.shape, d_bar.dtype)
            d_bar = d_bar * primitive.bind(*structure, ones, **params)
        places = Places(indices_of(*structure), a.shape)
        return places.write(d_bar, range(a.ndim), a.shape)

    multilinear(primitive, *[None] * count, transpose)


def declare_fromdense(primitive: Any, indices_of: Callable, pads_inside: bool) -> None:
    """`d = E^T a`, where E depends on which entries of `a` are zero. Values that are left over are
    zero; one format gives them a place inside the array."""

    def jvp(primals, tangents, **params):
        d, *structure = primitive.bind(*primals, **params)
        d_dot = read_at(instantiate(tangents[0]), indices_of(*structure), d)
        if pads_inside:
            d_dot = jnp.where(d != 0, d_dot, 0)
        return [d, *structure], [d_dot, *map(Zero.like, structure)]

    general(primitive, jvp)


def declare_todense_of_any(primitive: Any, indices_of: dict) -> None:
    """`y = E d`, for an array in any of the formats, or for a dense one."""

    def transpose(y_bar, d, *structure, tree):
        kind = type(tree.unflatten([d, *structure]))
        return read_at(y_bar, indices_of[kind](*structure), d) if kind in indices_of else y_bar

    linear(primitive, transpose)


# ---- products ------------------------------------------------------------------------------------


def labels_of(lhs: int, rhs: int, dimension_numbers: tuple) -> tuple[list[int], list[int]]:
    """The labels of the right factor, and of the product, for factors of so many dimensions."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    paired = {*lhs_contract, *lhs_batch}
    right = [lhs + i for i in range(rhs)]
    for i, j in zip((*lhs_contract, *lhs_batch), (*rhs_contract, *rhs_batch), strict=True):
        right[j] = i
    kept = [i for i in range(lhs) if i not in paired]
    return right, [*lhs_batch, *kept, *(i for i in right if i >= lhs)]


def declare_product(
    primitive: Any, indices_of: Callable, count: int, dimensions_of: Callable
) -> None:
    """`y = (E d) x`. `dimensions_of` reads the shape of `E d` and the dimension numbers."""

    def parts(y_bar, structure, x, params):
        shape, dimension_numbers = dimensions_of(**params)
        right, out = labels_of(len(shape), x.ndim, dimension_numbers)
        return Places(indices_of(*structure), shape), right, (y_bar, out)

    def values_transpose(y_bar, d, *inputs, **params):
        *structure, x = inputs
        places, right, y = parts(y_bar, structure, x, params)
        return places.values((x, right), y, d)

    def array_transpose(y_bar, d, *inputs, **params):
        *structure, x = inputs
        places, right, y = parts(y_bar, structure, x, params)
        return places.array(d, y, right, x)

    multilinear(primitive, values_transpose, *[None] * count, array_transpose)


def of_dot_general(*, lhs_spinfo, dimension_numbers, **_):
    return lhs_spinfo.shape, dimension_numbers


def of_coo(*, spinfo, transpose):
    return spinfo.shape, (([0 if transpose else 1], [0]), ([], []))


def of_csr(*, shape, transpose):
    return shape, (([0 if transpose else 1], [0]), ([], []))


def declare_sampled(primitive: Any) -> None:
    """`d = E^T (a b)`: the entries of a product of dense arrays at given places."""

    def parts(a, b, indices, dimension_numbers):
        right, out = labels_of(a.ndim, b.ndim, dimension_numbers)
        # The array with the values is the product, so its labels come first.
        summed = [i for i in range(a.ndim) if i not in out]
        renamed = {label: i for i, label in enumerate([*out, *summed])}
        sizes = {**dict(zip(right, b.shape, strict=True)), **dict(enumerate(a.shape))}
        places = Places(indices, [sizes[label] for label in out])
        return places, [renamed[i] for i in range(a.ndim)], [renamed[i] for i in right]

    def left_transpose(d_bar, a, b, indices, *, dimension_numbers):
        places, left, right = parts(a, b, indices, dimension_numbers)
        return places.array(d_bar, (b, right), left, a)

    def right_transpose(d_bar, a, b, indices, *, dimension_numbers):
        places, left, right = parts(a, b, indices, dimension_numbers)
        return places.array(d_bar, (a, left), right, b)

    multilinear(primitive, left_transpose, right_transpose, None)


# ---- new places ----------------------------------------------------------------------------------


class Rearranged(General):
    """`d' = A(places) d`: values at new places, which depend on the old places alone.

    We bind the operation on the primals. On tangents we run its implementation, which consists of
    operations that have a transpose.
    """

    may_split = True

    def __init__(self, primitive: Any, argnums: Sequence[int]):
        super().__init__(self.push)
        self.primitive, self.argnums = primitive, argnums

    def push(self, primals, tangents, **params):
        if params.get("nse", 0) is None:
            np.asarray(primals[1])  # how many there are depends on the values
        d, places = self.primitive.bind(*primals, **params)
        if "nse" in params:
            params["nse"] = places.shape[-2]
        moving = [i for i in self.argnums if type(tangents[i]) is not Zero]
        terms = []
        for i in moving:
            moved = [*primals[:i], tangents[i], *primals[i + 1 :]]
            terms.append(self.primitive.impl(*moved, **params)[0])
        return [d, places], [add(*terms) if len(terms) == 2 else terms[0], Zero.like(places)]

    def depends(self, params, inputs):
        return [any(inputs), any(x for i, x in enumerate(inputs) if i not in self.argnums)]

    def split(self, primitive, inputs, owned, params):
        return list(primitive.impl(*inputs, **params))


# ---- systems -------------------------------------------------------------------------------------


def declare_spsolve(primitive: Any, csr_matvec: Any) -> None:
    """`A x = b`, with A by rows."""

    def jvp(primals, tangents, **params):
        (d, columns, pointers, b), (d_dot, _, _, b_dot) = primals, tangents
        x, right = primitive.bind(*primals, **params), instantiate(b_dot)
        if type(d_dot) is not Zero:
            size = {"shape": (b.shape[0], b.shape[0]), "transpose": False}
            right = right - csr_matvec.bind(d_dot, columns, pointers, x, **size)
        return x, primitive.bind(d, columns, pointers, right, **params)

    # The rows of A^T are the columns of A: we sort the values by column, and count them.
    def transpose(x_bar, d, columns, pointers, b, **params):
        (n,) = b.shape
        rows = of_pointers(columns, pointers)[..., 0].astype(columns.dtype)
        columns = jnp.where(rows < n, columns, n)
        order = jnp.argsort(columns)
        counts = jnp.bincount(columns, length=n).astype(pointers.dtype)
        ends = jnp.concatenate([jnp.zeros_like(pointers[:1]), jnp.cumsum(counts)])
        ends = ends.astype(pointers.dtype)
        return primitive.bind(d[order], rows[order], ends, x_bar, **params)

    linear(primitive, transpose, argnums=3, jvp=jvp)


@when_imported("sparse")
def declare(sparse: Any) -> None:
    for name, indices_of, count, pads_inside in (
        ("bcoo", of_coordinates, 1, False),
        ("bcsr", of_pointers, 2, False),
        ("coo", of_row_and_column, 2, True),
        ("csr", of_pointers, 2, False),
    ):
        primitives = vars(sparse)
        declare_todense(primitives[f"{name}_todense_p"], indices_of, count)
        declare_fromdense(primitives[f"{name}_fromdense_p"], indices_of, pads_inside)
        if name.startswith("b"):
            declare_extract(primitives[f"{name}_extract_p"], indices_of, count)
            products, dimensions_of = ("dot_general",), of_dot_general
        else:
            products, dimensions_of = ("matvec", "matmat"), of_coo if name == "coo" else of_csr
        for product in products:
            declare_product(primitives[f"{name}_{product}_p"], indices_of, count, dimensions_of)
    formats = {
        sparse.BCOO: of_coordinates,
        sparse.BCSR: of_pointers,
        sparse.COO: of_row_and_column,
        sparse.CSR: of_pointers,
        sparse.CSC: of_pointers_to_columns,
    }
    declare_todense_of_any(sparse.todense_p, formats)
    declare_sampled(sparse.bcoo_dot_general_sampled_p)
    rearranging = sparse.bcoo_transpose_p, sparse.bcoo_sort_indices_p, sparse.bcoo_sum_duplicates_p
    for primitive in rearranging:
        call(primitive, Rearranged(primitive, (0,)))
    call(sparse.bcoo_spdot_general_p, Rearranged(sparse.bcoo_spdot_general_p, (0, 2)))
    declare_spsolve(sparse.linalg.spsolve_p, sparse.csr_matvec_p)
