"""The other libraries of differentiation, where they are installed: HIPS Autograd and `torch.func`.

    gradients : Problem -> {library -> a call that computes the gradient}

They differentiate the very same functions, which take the module of their operations as `np`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax
import numpy as np

from benchmarks.problem import Problem


def imported(name: str) -> Any:
    """A library, if it is installed and runs with this version of JAX; or `None`."""
    try:
        return import_module(name)
    except ImportError:
        return None


def gradients(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The libraries that are installed, at work on a function that takes `np`."""
    found = {}
    if problem.rivals:
        rivals = {name: fun for name, fun in problem.rivals.items() if name != "JAX"}
        given = problem.x, *problem.data
        return {name: partial(jax.jit(jax.grad(fun)), *given) for name, fun in rivals.items()}
    args = jax.tree.map(np.asarray, (problem.x, *problem.data))
    if autograd := imported("autograd"):
        fun = partial(problem.fun, np=import_module("autograd.numpy"))
        found["Autograd"] = partial(autograd.grad(fun), *args)
    if torch := imported("torch"):
        tensors = jax.tree.map(torch.tensor, args)
        fun = partial(problem.fun, np=torch)
        found["torch"] = partial(import_module("torch.func").grad(fun), *tensors)
    return found
