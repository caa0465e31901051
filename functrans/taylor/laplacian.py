"""The Laplacian in forward mode: second derivatives, summed on the way.

    laplacian : (a -> b) -> (a -> b)          L f = sum_i d2f/dx_i2

A value `v` of the program carries its derivatives `v_i = dv/dx_i` in all directions, and one more
array, the sum of its second ones, `L v`.  An equation `y = f(v)` maps them to

    y_i = J_f v_i            L y = J_f L v + sum_i D2f[v_i, v_i]

where `J_f` is the tangent program of the equation, and `D2f` the tangent of that program.  Both
come from the table of rules; a linear equation has no `D2f`.  For n inputs this costs n + 1
pushforwards.  A Hessian, or a second derivative for each direction, costs twice as much, since
each direction carries its second derivative.

In a run of elementwise equations every value is a function of one array `u`, the *base* of the run.
Its two derivatives, one number for each element, are enough, and the directions wait

    y = g(u)                 y_i = g'(u) u_i          L y = g'(u) L u + g''(u) sum_i u_i^2

until an equation mixes elements.  An elliptic operator `sum_ij w_ij d2f/dx_i dx_j` differs in one
place: it has `D2f[v_i, sum_j w_ij v_j]`.

Sources: R. Li and others, A computational framework for neural network-based variational Monte
Carlo with forward Laplacian, Nature Machine Intelligence 6 (2024), arXiv:2307.08214; F. Dangel and
others, Collapsing Taylor mode automatic differentiation (2025), arXiv:2505.13644.

Read next: `../sparse/__init__.py`, matrices with few elements that differ from zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax, tree
from jax.extend.core import ClosedJaxpr, JaxprEqn

from functrans import extend
from functrans.errors import checks, structures
from functrans.flat import Argnums, select
from functrans.signatures import of_the_arguments


class Base:
    """The derivatives of an array `u`: all `u_i`, stacked in front, and `L u`, `None` for zero."""

    def __init__(self, firsts: Any, laplacian: Any, weigh: Callable):
        self.firsts, self.laplacian, self.weigh = firsts, laplacian, weigh

    @functools.cached_property
    def square(self) -> Any:
        """`sum_i u_i^2`"""
        return jnp.sum(self.firsts * self.weigh(self.firsts), axis=0)


class Carried(NamedTuple):
    """A value that depends on `x`: a function of its base, element by element.

    `first` and `second` are the derivatives of this function; `None` stands for 1 and for 0.
    """

    value: Any
    base: Base
    first: Any = None
    second: Any = None

    def derivatives(self) -> tuple:
        """Its derivatives in all directions, and its Laplacian."""
        u, first, second = self.base, self.first, self.second
        if first is None:
            return u.firsts, u.laplacian
        laplacian = None if u.laplacian is None else extend.times(first, u.laplacian)
        if second is not None:
            laplacian = plus(laplacian, extend.times(second, u.square))
        return extend.times(first, u.firsts), laplacian


class Point(NamedTuple):
    """An equation, flags of its `Carried` inputs, and the values of its inputs and outputs."""

    equation: JaxprEqn
    moving: tuple[bool, ...]
    xs: list
    ys: list

    def evaluate(self, program: ClosedJaxpr, *tangents: Any) -> list:
        """A program of tangents, here."""
        return extend.evaluate(program, [*self.xs, *self.ys, *tangents], self.equation)


def plus(x: Any, y: Any) -> Any:
    """A sum in which `None` is zero."""
    return y if x is None else x if y is None else x + y


# ---- the meaning of an equation ------------------------------------------------------------------


def meaning(weigh: Callable, equation: JaxprEqn, inputs: list) -> list:
    """An equation on values, some of them `Carried`, the others constant.

    `weigh` takes all `v_i` to all `sum_j w_ij v_j`.
    """
    moving = tuple([isinstance(x, Carried) for x in inputs])
    carried: list[Carried] = extend.pick(inputs, moving)
    if carried and weigh is unweighted:
        columns = extend.through(equation, [*map(column, inputs)], walk)
        if columns is not None:
            return [*map(from_column, columns)]
    xs = [x.value if moves else x for x, moves in zip(inputs, moving, strict=True)]
    at = Point(equation, moving, xs, extend.bind(equation, xs))
    if not carried:
        return at.ys
    slopes, moved = extend.derivative_program(equation, moving)
    if not any(moved):
        return at.ys
    if is_one_run(carried) and is_elementwise(equation, moving):
        return [continued(at, slopes, carried)]
    return mixed(at, slopes, moved, carried, weigh)


def continued(at: Point, slope: ClosedJaxpr, carried: list[Carried]) -> Carried:
    """An elementwise equation in a run: the value and both derivatives of the composition."""
    (y,), (result,), tangents = at.ys, slope.jaxpr.outvars, slope.jaxpr.invars[len(at.xs) + 1 :]
    if result in tangents:  # a constant was added: the derivatives are those of the other term
        return carried[tangents.index(result)]._replace(value=y)
    firsts = [lax.full_like(x.value, 1) if x.first is None else x.first for x in carried]
    (first,) = at.evaluate(slope, *firsts)
    # Along u, the tangent of (x, y, x') is (x', y', x'').
    bent = [x.second is not None for x in carried]
    bend, (moved,) = extend.tangents_of(slope, (*at.moving, True, *bent))
    if not moved:
        return Carried(y, carried[0].base, first)
    seconds = extend.pick([x.second for x in carried], bent)
    (second,) = at.evaluate(bend, *firsts, *firsts, first, *seconds)
    return Carried(y, carried[0].base, first, second)


def mixed(
    at: Point, slopes: ClosedJaxpr, moved: Sequence, carried: list[Carried], weigh: Callable
) -> list:
    """Any other equation: its first derivative in all directions, the sum of its second ones."""
    firsts, laplacians = zip(*(x.derivatives() for x in carried), strict=True)
    y_firsts = jax.vmap(functools.partial(at.evaluate, slopes))(*firsts)
    totals = extend.pick(along_laplacians(at, laplacians), moved)
    # The tangent of (x, y, x_i) is (x_i, y_i, 0).
    bends, bent = extend.tangents_of(slopes, (*at.moving, *moved, *[False] * len(carried)))
    if any(bent):
        others = map(weigh, [*firsts, *y_firsts])
        found = iter(jax.vmap(functools.partial(at.evaluate, bends))(*firsts, *others))
        terms = [jnp.sum(next(found), axis=0) if flag else None for flag in bent]
        totals = map(plus, totals, terms)
    new = iter([Base(*pair, weigh) for pair in zip(y_firsts, totals, strict=True)])
    return [Carried(y, next(new)) if flag else y for y, flag in zip(at.ys, moved, strict=True)]


def along_laplacians(at: Point, laplacians: Sequence) -> list:
    """`J_f L v`, for each result; `None` where it is zero."""
    there = [x is not None for x in laplacians]
    if not any(there):
        return [None] * len(at.ys)
    flags = extend.merge([False] * at.moving.count(False), there, at.moving)
    program, moved = extend.derivative_program(at.equation, flags)
    outs = at.evaluate(program, *extend.pick(laplacians, there))
    return extend.merge([None] * moved.count(False), outs, moved)


def is_one_run(carried: Sequence[Carried]) -> bool:
    """Whether all are functions of one base, which is real: on complex numbers the derivative of an
    elementwise function need not be one number."""
    base, shape = carried[0].base, carried[0].value.shape
    same = all(x.base is base and x.value.shape == shape for x in carried)
    return same and not jnp.iscomplexobj(base.firsts)


def is_elementwise(equation: JaxprEqn, moving: Sequence[bool]) -> bool:
    """Whether each element of one result depends on one element of each input that moves."""
    if len(equation.outvars) != 1:
        return False
    function = equation.params.get("call_jaxpr")
    if function is None:
        return acts_on_elements(equation, moving)
    mixing: list[JaxprEqn] = []

    def inside(equation, flags):  # a custom rule: the function itself says it
        moved = [False] * len(equation.outvars)
        if any(flags):
            moved = extend.derivative_program(equation, flags).moved
        if any(moved) and not acts_on_elements(equation, flags):
            mixing.append(equation)
        return moved

    extend.interpret(function, moving, inside, lambda _: False)
    return not mixing


def acts_on_elements(equation: JaxprEqn, moving: Sequence[bool]) -> bool:
    is_known = extend.is_elementwise(equation.primitive)
    atoms = [*equation.outvars, *extend.pick(equation.invars, moving)]
    return is_known and len({atom.aval.shape for atom in atoms}) == 1


# ---- values in loops and branches ----------------------------------------------------------------


def walk(program: ClosedJaxpr, columns: Sequence[Sequence]) -> list[tuple]:
    """A program inside a call, on columns: a value, its derivatives, its Laplacian."""
    step = functools.partial(meaning, unweighted)
    outs = extend.interpret(program, [*map(from_column, columns)], step, own_rules=True)
    return [*map(column, outs)]


def column(x: Any) -> tuple:
    """The directions come last, as a loop may slice what it is given along its first axis."""
    if not isinstance(x, Carried):
        return (x,)
    firsts, laplacian = x.derivatives()
    return x.value, jnp.moveaxis(firsts, 0, -1), laplacian


def from_column(column: Sequence) -> Any:
    value, firsts, laplacian = (*column, None, None)[:3]
    if firsts is None:
        return value
    return Carried(value, Base(jnp.moveaxis(firsts, -1, 0), laplacian, unweighted))


# ---- the directions ------------------------------------------------------------------------------


def unit_vectors(leaves: Sequence) -> list:
    """The part of all unit vectors in each array."""
    sizes = [x.size for x in leaves]
    count, starts = sum(sizes), [sum(sizes[:i]) for i, _ in enumerate(sizes)]
    return [
        jnp.eye(count, x.size, -start, x.dtype).reshape(count, *x.shape)
        for x, start in zip(leaves, starts, strict=True)
    ]


def split(firsts: Any, leaves: Sequence) -> list:
    """The reverse: the derivatives in the elements of each array, in axes that come last."""
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = jnp.split(jnp.moveaxis(firsts, 0, -1), ends, axis=-1)
    shape = firsts.shape[1:]
    return [part.reshape(*shape, *x.shape) for part, x in zip(parts, leaves, strict=True)]


def unweighted(vectors: Any) -> Any:
    return vectors


def weighing(weights: Any, leaves: Sequence, structure: Any) -> Callable:
    """The map of all `v_i` to all `sum_j w_ij v_j`; the directions are the elements of `leaves`."""
    if weights is None:
        return unweighted
    given, shapes, sizes = tree.leaves(weights), [x.shape for x in leaves], [x.size for x in leaves]
    found, count = [*map(jnp.shape, given)], sum(sizes)
    if any(map(jnp.iscomplexobj, given)):
        raise TypeError("laplacian: weights must be real")
    if found == shapes and tree.structure(weights) == structure:
        diagonal = jnp.concatenate([jnp.ravel(w) for w in given])
        return lambda vs: diagonal.astype(vs.dtype).reshape(count, *[1] * (vs.ndim - 1)) * vs
    if found != [a + b for a in shapes for b in shapes]:
        point = structures.described(tree.unflatten(structure, leaves))
        raise ValueError(
            "laplacian: weights must be like the argument, for sum_i w_i d2f/dx_i2, or like its "
            f"Hessian, for sum_ij w_ij d2f/dx_i dx_j. The argument is {point}, and the weights are "
            f"{structures.described(weights)}"
        )
    rest = iter(given)
    rows = [jnp.hstack([next(rest).reshape(n, m) for m in sizes]) for n in sizes]
    matrix = jnp.vstack(rows)
    return lambda vs: jnp.tensordot(matrix.astype(vs.dtype), vs, 1)


# ---- the transform -------------------------------------------------------------------------------


def laplacian(
    fun: Callable,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    weights: Any = None,
    with_value_and_gradient: bool = False,
) -> Callable:
    """Make a function that computes `sum_i d2f/dx_i2` in one forward pass, without the Hessian.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same. functrans stages it, as `jit`
        does.
      argnums: the position, or positions, of the arguments whose elements are the `x_i`.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      weights: real numbers, of the structure and shapes of the argument, for the operator `sum_i
        w_i d2f/dx_i2`; or of those of its Hessian, for `sum_ij w_ij d2f/dx_i dx_j`.
      with_value_and_gradient: whether to return the value and the gradient too.

    Returns:
      A function of the same arguments that returns the Laplacian of each output, of the structure,
      shapes and dtypes of the output; or `(value, gradient, laplacian)`, with a gradient like the
      result of `jacfwd`. With `has_aux` it returns `(laplacian, aux)`, or `((value, aux), gradient,
      laplacian)`.

    Raises:
      TypeError: if an argument is not of a real dtype (complex, if `holomorphic`), or an output
        not of a real or complex one.
      ValueError: if the weights fit neither the argument nor its Hessian.

    See also:
      `hessian`, for all second derivatives.

    Sources: R. Li and others, Forward Laplacian, Nature Machine Intelligence 6 (2024); F. Dangel
    and others, Collapsing Taylor mode automatic differentiation (2025).

    >>> import jax, jax.numpy as jnp, functrans as ft
    >>> x = jnp.array([1.0, 2.0, 2.0])
    >>> float(ft.laplacian(lambda x: x @ x)(x))
    6.0
    >>> waves = jnp.array([-1.0, 1.0, 1.0])  # -d2/dt2 + d2/dx2 + d2/dy2
    >>> float(ft.laplacian(lambda x: x[0] ** 2 + 3 * x[1] ** 2, weights=waves)(x))
    4.0
    """
    settings = {"argnums": checks.argnums(argnums), "has_aux": has_aux, "holomorphic": holomorphic}
    settings["complete"] = with_value_and_gradient
    at = extend.transformed(fun, _laplacian, name="laplacian", **settings)
    if weights is None:
        return at

    def weighted(*args, **kwargs):
        return at(*args, laplacian_weights=weights, **kwargs)

    return functools.wraps(at)(weighted)


def _laplacian(
    fun: Callable, name: str, argnums: Any, has_aux: bool, holomorphic: bool, complete: bool
) -> Callable:
    def laplacian_at(*args, laplacian_weights=None, **kwargs):
        partial, selected = select(name, fun, args, kwargs, argnums)
        checks.inputs(name, fun, argnums, args, holomorphic=holomorphic)
        point = selected[0] if isinstance(argnums, int) else selected
        leaves, structure = [*map(jnp.asarray, tree.leaves(point))], tree.structure(point)
        weigh = weighing(laplacian_weights, leaves, structure)
        bases = [Base(vectors, None, weigh) for vectors in unit_vectors(leaves)]
        function = WithAux(partial, has_aux)
        staged = extend.staged(function, *selected)
        step = functools.partial(meaning, weigh)
        inputs = [*map(Carried, leaves, bases)]
        outs = extend.interpret(staged.program, inputs, step, own_rules=True)
        ys = [x.value if isinstance(x, Carried) else jnp.asarray(x) for x in outs]
        value, arrays = staged.result(ys)
        check_outputs(name, value, holomorphic)
        out_tree, size = tree.structure(value), sum(x.size for x in leaves)
        pairs = zip(outs[: out_tree.num_leaves], ys, strict=False)
        derived = [derivatives_of(*pair, size) for pair in pairs]
        total = tree.unflatten(out_tree, [second for _, second in derived])
        if not complete:
            return (total, function.aux(arrays)) if has_aux else total
        parts = [tree.unflatten(structure, split(firsts, leaves)) for firsts, _ in derived]
        value = (value, function.aux(arrays)) if has_aux else value
        return value, tree.unflatten(out_tree, parts), total

    return of_the_arguments(fun, name, "Laplacian", laplacian_at)


class WithAux:
    """A function of arrays to pairs of arrays; it remembers the rest of `aux`."""

    def __init__(self, fun: Callable, has_aux: bool):
        self.fun, self.has_aux = fun, has_aux
        self.__name__ = fun.__name__

    def __call__(self, *args: Any) -> tuple:
        out, aux = self.fun(*args), None
        if self.has_aux:
            out, aux = checks.pair(out)
        leaves, self.structure = tree.flatten(aux)
        self.traced = [isinstance(x, jax.core.Tracer) for x in leaves]
        self.rest, arrays = extend.part(leaves, self.traced)
        return out, arrays

    def aux(self, arrays: list) -> Any:
        return tree.unflatten(self.structure, extend.merge(self.rest, arrays, self.traced))


def derivatives_of(x: Any, y: Any, count: int) -> tuple:
    """The derivatives of a result with the value `y`, and its Laplacian, as arrays."""
    if not isinstance(x, Carried):
        return jnp.zeros((count, *y.shape), y.dtype), jnp.zeros_like(y)
    firsts, laplacian = x.derivatives()
    return firsts, jnp.zeros_like(y) if laplacian is None else laplacian


def check_outputs(name: str, value: Any, holomorphic: bool) -> None:
    if not tree.leaves(value):
        checks.outputs(name, value, holomorphic)  # says so
    named = functools.partial(structures.leaves, "the output", value)
    checks.numbers(name, "outputs", value, named, holomorphic, complex_too=True)
