"""Derivative rules: `(x, x_dot) -> (y, y_dot)` for one primitive, and the transpose.

A primitive has one rule, and its declaration states only the mathematics:

    y = f(x)        forward:    y_dot = J_f(x) x_dot        reverse:    x_bar = J_f(x)^T y_bar

We transpose *linear* equations.  The definition is `Re<y_bar, J x_dot> = Re<J^T y_bar, x_dot>`,
without a conjugate, even for complex numbers.

| kind          | states                          | example                                   |
|---------------|---------------------------------|-------------------------------------------|
| `elementwise` | the partial derivatives         | `elementwise(sin_p, lambda y, x: cos(x))` |
| `linear`      | the transpose                   | `linear(neg_p, lambda y_bar, x: -y_bar)`  |
| `multilinear` | the transpose in each argument  | `multilinear(dot_general_p, left, right)` |
| `zero`        | nothing                         | `zero(floor_p)`                           |
| `general`     | a jvp, by other primitives      | `general(sort_p, sort_jvp)`               |
| `call`        | a class that derives its jaxprs | `call(jit_p, JitRule())`                  |

A function in a declaration gets the equation's inputs by position, and those of the equation's
params that it names as keyword-only arguments (or all, as `**params`).

**functrans calls a rule once for each type of equation, with tracers.**  It keeps the answer as a
small program for the next such equation: a `print` in a rule shows a tracer, once.  A rule that
must see values (`if x > 0:`) gets them, each time.

You give your own primitive a derivative in the same way:

>>> import jax, functrans as ft
>>> from jax.extend.core import Primitive
>>> from jax.interpreters import mlir
>>> from jax import lax
>>> cube_p = Primitive("cube")
>>> _ = cube_p.def_impl(lambda x: x * x * x)
>>> _ = cube_p.def_abstract_eval(lambda x: x)
>>> ft.rules.elementwise(cube_p, lambda y, x: 3 * x * x)
>>> float(ft.grad(cube_p.bind)(2.0)), float(ft.grad(ft.grad(cube_p.bind))(2.0))
(12.0, 12.0)

Read next: `tracer.py`, which writes the equations that these rules differentiate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import Primitive, jaxprs_in_params

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.errors import checks, operations
from functrans.errors.operations import NotLinear
from functrans.values import Flags, Linear, Zero

Pair = tuple[list, list]


class Absent(Primitive):
    """Stands for a primitive that this version of JAX lacks: no equation asks its rule."""


class Table(dict):
    """From a primitive to its rule. After a rule is replaced, its programs are derived anew."""

    def __setitem__(self, primitive: Primitive, rule: Rule) -> None:
        if not isinstance(primitive, Absent):
            caches.Version.rules += primitive in self
            super().__setitem__(primitive, rule)

    def __missing__(self, primitive: Primitive) -> Rule | None:
        """The rule that a fallback declares, or `None`."""
        any(declare(primitive) for declare in FALLBACKS)
        return self.get(primitive)


RULES: dict[Primitive, Rule] = Table()
STAGING_RULES: dict[Any, Callable] = {}
"""For operations that may need no equation: functions of `(trace, primitive, inputs, params)` that
return the outputs, or `None` if the trace is to write the equation."""

FALLBACKS: list[Callable[[Primitive], bool]] = []
"""Functions that may declare a rule for a primitive without one; each returns whether it did."""

FAILURES: list[str] = []
"""The declarations of unnamed primitives that failed; a test checks that there are none."""

CALL: Any = "call"
"""In `STAGING_RULES`: every call of Python functions; these are in `params["subfuns"]`."""

LINEAR: Any = "linear"
"""As a partial derivative: the operation is linear in this argument, as `x * y` is in `x`."""


class Rule:
    """The derivative of one primitive; each kind fills in `forward` and, if linear, `transpose`."""

    depends_on_types_only = False
    """Whether the types and params of an equation determine what the rule writes."""

    carried: str | None = None
    """The param that holds a program, if what the rule writes depends on this program, the other
    params and the types alone."""

    may_split = False
    """Whether some results may depend on fewer inputs than others; then the rule has a `split`."""

    is_diagonal = False
    """Whether each element of the result depends on one element of each input."""

    def forward(self, primitive: Primitive, primals: list, tangents: list, params: dict) -> Pair:
        """Evaluate the equation and push its tangents forward; any of them may be a `Zero`."""
        raise NotImplementedError

    def linearize(self, primitive: Primitive, primals: list, tangents: list, params: dict) -> Pair:
        """As `forward`, while a tape records the tangents."""
        return self.forward(primitive, primals, tangents, params)

    def transpose(self, primitive: Primitive, cotangents: list, inputs: list, params: dict) -> list:
        """Pull the cotangents back to each `Linear` input; `None` or `Zero` if it gets none."""
        raise NotLinear.at(primitive, inputs)

    def is_linear(self, count: int) -> bool:
        """Whether the operation is linear in all of its `count` inputs together."""
        return False

    def depends(self, params: dict, inputs: Sequence[bool]) -> Sequence[bool]:
        """Which outputs depend on these inputs; for a rule that `may_split`."""
        raise NotImplementedError

    def split(self, primitive: Primitive, inputs: list, owned: Flags, params: dict) -> list:
        """Evaluate an equation on a tape that owns some inputs: run now the part that does not
        depend on them, and write an equation all of whose outputs do."""
        raise NotImplementedError

    def trim(self, params: dict, wanted: Sequence[bool]) -> Trimmed | None:
        """The equation without the work for its other outputs; `None` if it stays the same."""
        return None


class Trimmed(NamedTuple):
    """An equation with fewer outputs."""

    params: dict
    inputs: Sequence[bool]
    """Which of its inputs it still reads."""
    outputs: Sequence[bool]
    """Which of its outputs it still gives; a loop gives those that its next step reads."""


class Elementwise(Rule):
    """`z_dot = sum_i x_i_dot * dz/dx_i`: the Jacobian is diagonal, hence its own transpose."""

    depends_on_types_only = is_diagonal = True

    def __init__(self, partials: Sequence[Any], jvp: Callable | None = None):
        self.partials: list = [p if p in (None, 1, -1, LINEAR) else _reader(p) for p in partials]
        if jvp is not None:
            self.forward = General(jvp).forward

    def forward(self, primitive, primals, tangents, params):
        answer = primitive.bind(*primals, **params)
        aval = values.tangent_aval(values.typeof(answer))
        total: Any = Zero(aval)
        for i, (partial, tangent) in enumerate(zip(self.partials, tangents, strict=True)):
            if type(tangent) is Zero or partial is None:
                continue
            if partial == -1 and type(total) is not Zero:
                total = lax.sub(total, values.broadcast_to(tangent, aval))
                continue
            term = self._times_partial(primitive, i, tangent, primals, params, answer)
            total = values.add(total, values.broadcast_to(term, aval))
        return [answer], [total]

    def transpose(self, primitive, cotangents, inputs, params):
        linear = sum(values.linear(inputs))

        def pull(i):
            partial = self.partials[i]
            # `LINEAR` means linear in each argument by itself, not in all together.
            if partial not in (1, -1, LINEAR) or (partial is LINEAR and linear > 1):
                raise NotLinear.at(primitive, inputs)
            return self._times_partial(primitive, i, cotangents[0], inputs, params)

        return [pull(i) if type(x) is Linear else None for i, x in enumerate(inputs)]

    def _times_partial(self, primitive, i, vector, inputs, params, answer=None):
        """The vector times the partial derivative in the argument `i`, a function of the answer."""
        partial = self.partials[i]
        if partial is LINEAR:
            return primitive.bind(*inputs[:i], vector, *inputs[i + 1 :], **params)
        if partial in (1, -1):
            return vector if partial == 1 else lax.neg(vector)
        return lax.mul(vector, partial(answer, *inputs, params=params))

    def is_linear(self, count):
        return all(p in (1, -1) for p in self.partials)


class LinearRule(Rule):
    """`y = A x` in the arguments `argnums` together: `y_dot = A x_dot`, `x_bar = A^T y_bar`."""

    depends_on_types_only = True

    def __init__(
        self, transpose: Callable, argnums: int | Sequence | slice | None, jvp: Any = None
    ):
        self.single = isinstance(argnums, int)
        given = slice(None) if argnums is None else argnums
        self.argnums: Any = (given,) if self.single else given
        self.pull = _reader(transpose)
        if jvp is not None:
            self.forward = General(jvp).forward

    def forward(self, primitive, primals, tangents, params):
        outs = jx.results(primitive, primitive.bind(*primals, **params))
        moved = list(primals)
        for i in self.places(len(primals)):
            moved[i] = values.instantiate(tangents[i])
        return outs, jx.results(primitive, primitive.bind(*moved, **params))

    def transpose(self, primitive, cotangents, inputs, params):
        places = self.places(len(inputs))
        y_bar = cotangents if primitive.multiple_results else cotangents[0]
        wrong = [x if i not in places or _rounds(x, y_bar) else None for i, x in enumerate(inputs)]
        if any(values.linear(wrong)):
            raise NotLinear.at(primitive, wrong)
        pulled = self.pull(y_bar, *inputs, params=params)
        x_bars = dict(zip(places, [pulled] if self.single else pulled, strict=True))
        return [x_bars.get(i) if type(x) is Linear else None for i, x in enumerate(inputs)]

    def places(self, count: int) -> Sequence[int]:
        """The positions of the arguments in which the operation is linear."""
        return range(count)[self.argnums] if isinstance(self.argnums, slice) else self.argnums

    def is_linear(self, count):
        return len(self.places(count)) == count


def _rounds(x: Any, y_bar: Any) -> bool:
    """Whether an operation with one result takes real numbers to integers, or the reverse."""
    if type(x) is not Linear or isinstance(y_bar, list):
        return False
    return values.is_differentiable(x.aval) != values.is_differentiable(values.aval_of(y_bar))


class Multilinear(Elementwise):
    """`z = B(x, y)`, linear in each argument: `z_dot = B(x_dot, y) + B(x, y_dot)`."""

    is_diagonal = False

    def __init__(self, transposes: Sequence[Callable | None]):
        super().__init__([None if t is None else LINEAR for t in transposes])
        self.pulls = [None if t is None else _reader(t) for t in transposes]

    def transpose(self, primitive, cotangents, inputs, params):
        linear = values.linear(inputs)
        pull = self.pulls[linear.index(True)]
        if sum(linear) != 1 or pull is None:
            raise NotLinear.at(primitive, inputs)
        x_bar = pull(cotangents[0], *inputs, params=params)
        return [x_bar if is_linear else None for is_linear in linear]


class ZeroRule(Rule):
    """`y` is piecewise constant in `x`, or not a real number at all, so `y_dot = 0`."""

    depends_on_types_only = True

    def forward(self, primitive, primals, tangents, params):
        outs = jx.results(primitive, primitive.bind(*primals, **params))
        return outs, [Zero.like(out) for out in outs]


class General(Rule):
    """`y, y_dot = jvp(x, x_dot)`, written with other primitives, which have transposes."""

    depends_on_types_only = True

    def __init__(self, jvp: Callable):
        self.jvp = _reader(jvp)

    def forward(self, primitive, primals, tangents, params):
        return checks.rule_result(primitive, self.jvp(primals, tangents, params=params))


# ---- declarations --------------------------------------------------------------------------------


def elementwise(primitive: Primitive, *partials: Any, jvp: Callable | None = None) -> None:
    """Declare the partial derivatives of an operation that acts on each element by itself.

    In a formula, `z_dot = sum_i x_i_dot dz/dx_i`. The Jacobian is diagonal: its own transpose.

    Args:
      primitive: the operation, `z = f(x_1, ..., x_n)`, with one result.
      *partials: one for each argument: a function of `(z, x_1, ..., x_n)` that returns `dz/dx_i`;
        or `1` or `-1`; or `LINEAR`, if the operation is linear in this argument, as a product is in
        each factor; or `None` for an argument without a derivative.
      jvp: a function that does the same at less cost, as for `general`.

    See also:
      `multilinear`, for a product that mixes elements; `general`, for any other operation.

    >>> import functrans as ft
    >>> from jax.extend.core import Primitive
    >>> ft.rules.elementwise(Primitive("angle"),
    ...     lambda z, x, y: y / (x * x + y * y),
    ...     lambda z, x, y: -x / (x * x + y * y))
    """
    RULES[primitive] = Elementwise(partials, jvp)


def linear(
    primitive: Primitive,
    transpose: Callable,
    argnums: int | Sequence[int] | slice | None = 0,
    jvp: Callable | None = None,
) -> None:
    """Declare an operation that is linear in the arguments `argnums`, taken together.

    In a formula, `y = A x`, `y_dot = A x_dot` and `x_bar = A^T y_bar`, without a conjugate.

    Args:
      primitive: the operation.
      transpose: a function of the cotangent and the inputs. The inputs in which the operation is
        linear come as `Linear`, with a `shape` and a `dtype` but no value. It returns the cotangent
        of the one linear argument, or a sequence with one for each of `argnums`.
      argnums: the position, or positions, of the linear arguments; a slice of all arguments; or
        `None` for all of them.
      jvp: the derivative in all arguments, as for `general`, if the others have one too.

    See also:
      `multilinear`, for an operation that is linear in each argument by itself, as a product is.

    >>> import functrans as ft
    >>> from jax.extend.core import Primitive
    >>> ft.rules.linear(Primitive("triple"), lambda y_bar, x: 3.0 * y_bar)
    """
    RULES[primitive] = LinearRule(transpose, argnums, jvp)


def multilinear(primitive: Primitive, *transposes: Callable | None) -> None:
    """Declare an operation that is linear in each of several arguments by itself.

    In a formula, `z = B(x, y)` and `z_dot = B(x_dot, y) + B(x, y_dot)`.

    Args:
      primitive: the operation, with one result.
      *transposes: one for each argument: a function of the cotangent and the inputs that returns
        the cotangent of this argument (which comes as `Linear`); or `None`, for an argument without
        a derivative.

    See also:
      `linear`, for an operation that is linear in all arguments together, as a sum is.

    >>> import functrans as ft
    >>> from jax.extend.core import Primitive
    >>> ft.rules.multilinear(Primitive("outer"),
    ...     lambda z_bar, x, y: z_bar @ y,
    ...     lambda z_bar, x, y: x @ z_bar)
    """
    RULES[primitive] = Multilinear(transposes)


def staging_rule(primitive: Any, simpler: Callable) -> None:
    """Declare how to stage an operation that may need no equation.

    Args:
      primitive: the operation.
      simpler: a function of the trace, the operation, its inputs and its params. It returns the
        outputs, or `None` if the trace is to write the equation after all.

    >>> import functrans as ft
    >>> from jax.extend.core import Primitive
    >>> same_p = Primitive("same")
    >>> _ = same_p.def_abstract_eval(lambda x: x)
    >>> ft.rules.staging_rule(same_p, lambda trace, primitive, inputs, params: inputs)
    >>> ft.make_jaxpr(same_p.bind)(1.0)
    { lambda ; a:f32[]. let  in (a,) }
    """
    STAGING_RULES[primitive] = simpler


def zero(*primitives: Primitive) -> None:
    """Declare operations whose derivative is zero wherever it exists.

    Args:
      *primitives: the operations: step functions, comparisons, operations on integers.

    >>> import functrans as ft
    >>> from jax.extend.core import Primitive
    >>> ft.rules.zero(Primitive("nearest_integer"))
    """
    for primitive in primitives:
        RULES[primitive] = ZeroRule()


def general(primitive: Primitive, jvp: Callable) -> None:
    """Declare a derivative by a jvp: `(primals, tangents) -> (primals_out, tangents_out)`.

    The jvp computes with other primitives, which have rules; reverse mode transposes these.

    Args:
      primitive: the operation.
      jvp: a function of the list of primals and the list of tangents. A tangent may be a `Zero`;
        `functrans.rules.instantiate` makes an array of it. It returns the output and its tangent,
        or, if the primitive has several results, a list of outputs and a list of tangents.

    See also:
      `elementwise`, `linear`, `multilinear` and `zero`, which ask for less.

    >>> import jax.numpy as jnp, functrans as ft
    >>> from jax.extend.core import Primitive
    >>> norm_p = Primitive("norm")
    >>> def norm_jvp(primals, tangents):
    ...     (x,), (x_dot,) = primals, tangents
    ...     y = norm_p.bind(x)
    ...     return y, jnp.sum(x * ft.rules.instantiate(x_dot)) / y
    >>> ft.rules.general(norm_p, norm_jvp)
    """
    RULES[primitive] = General(jvp)


def call(primitive: Primitive, rule: Rule) -> None:
    """Declare the rule of a primitive that carries jaxprs.

    Args:
      primitive: the operation.
      rule: a `Rule`; most derive from `CallRule` in `functrans/control_flow/base.py`.

    >>> import functrans as ft
    >>> from functrans.control_flow.calls import InlinedRule
    >>> from jax.extend.core import Primitive
    >>> ft.rules.call(Primitive("my_call"), InlinedRule())
    """
    RULES[primitive] = rule


# For the files of `derivatives/`, which import nothing else of the engine.
instantiate, cast, constant = values.instantiate, values.cast, values.constant
full, sharding_of = values.full, values.sharding_of
varying_as, broadcast_to = values.varying_as, values.broadcast_to


# ---- the table -----------------------------------------------------------------------------------


def rule_of(primitive: Primitive) -> Rule:
    """Look up the rule of a primitive.

    Args:
      primitive: the operation, such as `jax.lax.sin_p`, or the `primitive` of an equation.

    Returns:
      Its `Rule`. `is_diagonal` says whether the Jacobian is diagonal, and `is_linear(n)` whether
      the operation is linear in its `n` inputs together.

    Raises:
      NotImplementedError: if the primitive has no rule; the error says how to declare one.

    >>> from jax import lax
    >>> from functrans import extend
    >>> extend.rule_of(lax.sin_p).is_diagonal, extend.rule_of(lax.neg_p).is_linear(1)
    (True, True)
    """
    if (rule := RULES[primitive]) is None:
        raise operations.no_rule(primitive)
    return rule


def low_params(params: dict) -> dict:
    """The params; in their programs each "hi" primitive is replaced by its function."""
    lower = STAGING_RULES.get("hi")
    is_high = lower and any(getattr(p, "is_high", False) for p in jaxprs_in_params(params))
    return lower(params) if lower and is_high else params


def _reader(function: Callable) -> Callable:
    """Call `function` with the params that it names, and no others."""
    kinds = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in kinds):
        return lambda *args, params: function(*args, **params)
    names = [p.name for p in kinds if p.kind is p.KEYWORD_ONLY]
    return lambda *args, params: function(*args, **{n: params[n] for n in names if n in params})
