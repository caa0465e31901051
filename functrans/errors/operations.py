"""The messages about an operation without the derivative that was asked for, and a traced value.

Each message names the user's line.

Read next: `names.py`, the messages about names.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.ref
from jax.extend import source_info_util
from jax.extend.core import Primitive

from functrans import values
from functrans.errors.lines import in_place_of_numpy, user_line
from functrans.errors.tracebacks import ENDED


class NotLinear(TypeError, NotImplementedError):  # JAX raises the latter
    """An equation is not linear in an input with respect to which to transpose it."""

    @classmethod
    def at(cls, primitive: Primitive, operands: Sequence = ()) -> NotLinear:
        """`operands` are `Linear` if the equation is not linear in them."""
        which = [i for i, flag in enumerate(values.linear(operands)) if flag]
        said = [f"operand {i} ({operands[i].aval.str_short()})" for i in which]
        whole = f"it is not linear in {' and '.join(said) or 'its input'}"
        hint = "For the derivative of a nonlinear function use functrans.vjp or functrans.grad"
        if not all(values.is_differentiable(operands[i].aval) for i in which):
            hint = (
                "An operand that decides (a comparison, an index, the choice of a branch) must not "
                f"depend on what the function is linear in. {hint}"
            )
        return cls(f"cannot transpose '{primitive}' at {user_line()}: {whole}. {hint}")


def ended_trace() -> jax.errors.UnexpectedTracerError:
    return jax.errors.UnexpectedTracerError(
        f"the rule of the custom_jvp function at {user_line()} uses a value whose tracing has "
        f"ended. {ENDED}"
    )


def no_rule(primitive: Primitive) -> NotImplementedError:
    if primitive in _of_mutable_arrays():
        return NotImplementedError(
            f"functrans does not differentiate mutable arrays (jax.new_ref): '{primitive}' at "
            f"{user_line()} has one whose value depends on what is differentiated. Compute with "
            "arrays, such as x = x.at[i].set(y) for ref[i] = y; a loop carries them"
        )
    return NotImplementedError(
        f"functrans has no derivative rule for the primitive '{primitive}', used at "
        f"{user_line()}. Declare one, such as functrans.rules.elementwise({primitive}_p, "
        "lambda y, x: ...) if it acts on each element by itself; see help(functrans.rules)"
    )


@functools.lru_cache(maxsize=1)
def _of_mutable_arrays() -> set[Primitive]:
    def use(x):
        ref = jax.new_ref(x)
        ref[...] = ref[...]
        jax.ref.addupdate(ref, ..., x)
        return jax.freeze(ref)

    return {equation.primitive for equation in jax.make_jaxpr(use)(1.0).jaxpr.eqns}


def no_reverse(what: str, advice: str) -> ValueError:
    return ValueError(f"{what} has no reverse-mode derivative, at {user_line()}. {advice}")


def moving_prefetch() -> NotImplementedError:
    return NotImplementedError(
        f"the pallas_call at {user_line()} has an operand for scalar prefetch that moves. Such an "
        "operand says which blocks to take: pass numbers to compute with as one more input"
    )


def ordered_effect() -> ValueError:
    return ValueError(
        f"a loop has an ordered effect in its body, at {user_line()}. Reverse mode runs the steps "
        "of a while_loop, or of a fori_loop whose bounds are not Python integers, several times: "
        "leave out ordered=True, or use forward mode (jvp, jacfwd)"
    )


def summed_in_each_step(axes: Sequence[str]) -> NotImplementedError:
    return NotImplementedError(
        f"the loop at {user_line()} may take other numbers of steps on other devices, and gives "
        "what is the same on all of them to a program inside: its cotangents are summed over the "
        f"devices in each step. Copy it before the loop, by jax.lax.pcast(x, {tuple(axes)}, "
        "to='varying')"
    )


def not_offloaded() -> str:
    return (
        f"the checkpoint policy at {user_line()} offloads values to the host's memory; functrans "
        "saves them on the device instead"
    )


def no_derivative(primitive: Any) -> ValueError:
    return ValueError(
        f"'{primitive}' at {user_line()} calls a function outside of JAX, whose derivative is not "
        "known. Give the function around it a jax.custom_jvp or jax.custom_vjp rule, or stop the "
        "derivative with jax.lax.stop_gradient."
    )


def no_transpose_solve() -> TypeError:
    return TypeError(
        f"custom_linear_solve at {user_line()} has no transpose_solve, which its reverse-mode "
        "derivative calls. Pass transpose_solve, or symmetric=True if the operator is; or use "
        "forward mode (jvp, jacfwd)."
    )


def staged_value(source: Any) -> str:
    """The addition to JAX's error, if Python needs the value of a tracer of a jaxpr."""
    line = source_info_util.summarize(source or source_info_util.current())
    origin = f"was traced, not computed, at {line}" if line else "is traced, and not computed"
    return dual_value() or (
        f"\nThe value {origin}. To branch on it use jax.lax.cond or "
        "jax.numpy.where, make the argument it comes from static (static_argnums), or do not "
        "jit: the other transforms of functrans run Python control flow on concrete values."
    )


def dual_value() -> str:
    """The same for a tracer with a primal and a tangent, whose value Python can see."""
    better = in_place_of_numpy()
    return f"\n{better}" if better else ""
