"""The other libraries of differentiation, where they are installed: HIPS Autograd and `torch.func`.

    gradients : Problem -> {library -> a call that computes the gradient}

They differentiate the very same functions, which take the module of their operations as `np`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from benchmarks.problem import Problem


def gradients(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The libraries that are installed, at work on a function that takes `np`."""
    found = {}
    if problem.rivals:
        rivals = {name: fun for name, fun in problem.rivals.items() if name != "JAX"}
        given = problem.x, *problem.data
        return {name: partial(jax.jit(jax.grad(fun)), *given) for name, fun in rivals.items()}
    args = jax.tree.map(np.asarray, (problem.x, *problem.data))
    if find_spec("autograd"):
        fun = partial(problem.fun, np=import_module("autograd.numpy"))
        found["Autograd"] = partial(import_module("autograd").grad(fun), *args)
    if find_spec("torch"):
        torch = import_module("torch")
        tensors = jax.tree.map(torch.tensor, args)
        fun = partial(problem.fun, np=torch)
        found["torch"] = partial(import_module("torch.func").grad(fun), *tensors)
    return found
