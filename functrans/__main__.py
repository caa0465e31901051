"""The main job: train a real model on functrans's gradients, check them against JAX, look inside.

    python -m functrans

1. **Train** a small convolutional classifier of handwritten digits (scikit-learn's 1,797 images)
   with Optax. The update step is compiled from `value_and_grad(jit(loss))`.
2. **Cross-check** derivatives of the trained model against JAX's: their values and the call times.
3. **Look inside**: one small function on the way to its gradient.

Here the reading ends; part 3 shows what begins in `tracer.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

import functrans as ft

REQUIRED_ACCURACY = 0.97
TOLERANCE = 1e-4  # of the largest entry of JAX's result; both compute in float32
TIMED_CALLS = 20
DEMO_PACKAGES = ("optax", "sklearn", "tqdm")

Params = dict[str, dict[str, jax.Array]]


# The model: ordinary JAX code, which does not know functrans.


def initial_params(key: jax.Array) -> Params:
    """Draw He-normal weights for two convolutions and one dense layer."""
    shapes = {"conv1": (3, 3, 1, 16), "conv2": (3, 3, 16, 32), "dense": (2 * 2 * 32, 10)}
    params = {}
    for (name, shape), layer_key in zip(shapes.items(), jax.random.split(key, 3), strict=True):
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        weight = scale * jax.random.normal(layer_key, shape)
        params[name] = {"weight": weight, "bias": jnp.zeros(shape[-1])}
    return params


def conv_block(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Convolve, add the bias, rectify, and take the maximum of each 2x2 square."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, layer["weight"], (1, 1), "SAME", dimension_numbers=numbers)
    x = jax.nn.relu(x + layer["bias"])
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def model(params: Params, images: jax.Array) -> jax.Array:
    """Return the log-probability of each of the ten digits for each image."""
    x = conv_block(params["conv2"], conv_block(params["conv1"], images))
    x = x.reshape(x.shape[0], -1) @ params["dense"]["weight"] + params["dense"]["bias"]
    return jax.nn.log_softmax(x)


def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the model's predictions."""
    chosen = jnp.take_along_axis(model(params, images), labels[:, None], axis=-1)
    return -jnp.mean(chosen)


# Part 1: train.


def load_digits() -> list[Any]:
    """Return images to train on and to test on (a quarter), then their labels likewise."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = np.asarray(digits.images / 16, np.float32)[..., None]
    labels = np.asarray(digits.target, np.int32)
    return train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)


def train(options: argparse.Namespace, digits: list[Any]) -> tuple[Params, float]:
    """Train the model; return its parameters and its accuracy on the held-out images."""
    import optax
    from tqdm import tqdm

    images, test_images, labels, test_labels = digits
    optimizer = optax.adam(3e-3)
    loss_and_gradient = ft.value_and_grad(ft.jit(loss))

    @ft.jit
    def update(params, state, images, labels):
        value, gradient = loss_and_gradient(params, images, labels)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    @ft.jit
    def accuracy(params):
        return jnp.mean(jnp.argmax(model(params, test_images), axis=-1) == test_labels)

    params = initial_params(jax.random.key(options.seed))
    state = optimizer.init(params)
    shuffle = np.random.default_rng(options.seed)
    epochs = tqdm(range(options.epochs), unit="epoch", disable=options.no_progress)
    for _ in epochs:
        # Leave out the last, incomplete batch: all batches have one shape, compiled once.
        order = shuffle.permutation(len(images))
        for start in range(0, len(images) - options.batch_size + 1, options.batch_size):
            batch = order[start : start + options.batch_size]
            params, state, value = update(params, state, images[batch], labels[batch])
        epochs.set_postfix(loss=f"{value:.4f}", held_out=f"{accuracy(params):.1%}")
    return params, float(accuracy(params))


# Part 2: cross-check.


def jax_hvp(fun: Callable, x: Any, v: Any) -> Any:
    """Return JAX's Hessian-vector product, for which it has no function."""
    return jax.jvp(jax.grad(fun), (x,), (v,))[1]


def derivatives(lib: Any, hvp: Callable, images: Any, labels: Any, v: Any) -> dict[str, Callable]:
    """Return derivatives as functions of the model's parameters; `lib` is functrans or JAX."""

    def predict(params):
        return model(params, images)

    def objective(params):
        return loss(params, images, labels)

    def jacobian(params):
        return jax.vmap(lib.jacrev(lambda image: model(params, image[None])[0]))(images[:64])

    ones = jnp.ones((len(images), 10))
    gradient = ft.grad(ft.jit(objective)) if lib is ft else jax.jit(jax.grad(objective))
    return {
        "grad(jit(loss))": gradient,
        "jvp of the model": lib.jit(lambda params: lib.jvp(predict, (params,), (v,))),
        "vjp of the model": lib.jit(lambda params: lib.vjp(predict, params)[1](ones)),
        "hvp of the loss": lib.jit(lambda params: hvp(objective, params, v)),
        "vmap(jacrev(model))": lib.jit(jacobian),
    }


def largest_difference(ours: Any, theirs: Any) -> tuple[float, float]:
    """Return the largest absolute difference, and its ratio to the largest entry of `theirs`."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    absolute = max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)
    return absolute, absolute / max(float(jnp.max(jnp.abs(b))) for _, b in pairs)


def call_times(*functions: Callable) -> list[float]:
    """Return each function's median call time in milliseconds; the functions take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(TIMED_CALLS):
        for function, its_times in zip(functions, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            its_times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(its_times) for its_times in times]


def cross_check(params: Params, images: Any, labels: Any) -> bool:
    """Print a row for each derivative; return whether all of them agree with JAX's."""
    flat, unflatten = ravel_pytree(params)
    direction = unflatten(jax.random.normal(jax.random.key(1), flat.shape))
    ours = derivatives(ft, ft.hvp, images, labels, direction)
    theirs = derivatives(jax, jax_hvp, images, labels, direction)
    all_agree = True
    print(f"{'':20}  max abs diff  max rel diff    functrans          JAX   ratio")
    for name in ours:
        our, their = partial(ours[name], params), partial(theirs[name], params)
        absolute, relative = largest_difference(our(), their())
        our_time, their_time = call_times(our, their)
        agrees = relative <= TOLERANCE  # False for NaN, too
        all_agree = all_agree and agrees
        differences = f"{name:20} {absolute:13.1e} {relative:13.1e}"
        times = f"{our_time:9.2f} ms {their_time:9.2f} ms {our_time / their_time:6.2f}x"
        print(differences, times, "" if agrees else "DISAGREES")
    return all_agree


# Part 3: look inside.


def show_programs() -> None:
    """Print the four programs through which a small function becomes its gradient."""

    def g(x):
        return jnp.sum(x * jnp.sin(x))

    x = jnp.array([0.0, 1.0, 2.0])
    _, linear = ft.linearize(g, x)
    y, pullback = ft.vjp(g, x)
    print(f"""
    def g(x): return jnp.sum(x * jnp.sin(x))          at x = {x}

The tracer runs g and writes down each equation that it meets: y = g(x).

{ft.make_jaxpr(g)(x)}

`linearize` runs g at this x, and writes down what happens to a tangent: y_dot = J x_dot. Every
equation is linear. The numbers that it needs from the run, here the partial derivatives of the
product and of the sine, come along as its constants (the residuals).

{linear.jaxpr}

`vjp` reads the same program from the last equation to the first, and transposes each of them:
x_bar = J^T y_bar.

{ft.make_jaxpr(pullback)(jnp.ones_like(y))}

`grad` is g and that, with y_bar = 1. `grad(jit(g))` compiles it as one program for XLA.

{ft.make_jaxpr(ft.grad(g))(x)}

    f = ft.grad(ft.jit(g));  f(x) = {ft.grad(ft.jit(g))(x)}
    sin(x) + x * cos(x)           = {jnp.sin(x) + x * jnp.cos(x)}""")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""

    def positive(text: str) -> int:
        if int(text) < 1:
            raise ValueError(text)
        return int(text)

    parser = argparse.ArgumentParser(
        prog="python -m functrans",
        description="Train a classifier of handwritten digits on functrans's gradients, "
        "cross-check its derivatives against JAX's, and print how one gradient comes about.",
        epilog="The exit status is 1 if the accuracy on the held-out quarter is under "
        f"{REQUIRED_ACCURACY:.0%}, or if a derivative differs from JAX's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--epochs", type=positive, default=40, help="passes over the training images")
    option("--batch-size", type=positive, default=64, help="images in one update step")
    option("--seed", type=int, default=0, help="of the weights and of the batches")
    option("--no-progress", action="store_true", help="show no progress bar")
    options = parser.parse_args(arguments)
    if options.batch_size > 1347:
        parser.error("--batch-size: there are only 1347 images to train on")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Do the main job; return the exit status."""
    options = parse_options(arguments)
    missing = [name for name in DEMO_PACKAGES if find_spec(name) is None]
    if missing:
        print(f"This needs {', '.join(missing)}: pip install 'functrans[demo]'", file=sys.stderr)
        return 1

    print("1. Train. Every gradient is functrans's own: its value_and_grad(jit(loss)), compiled.")
    digits = load_digits()
    start = time.perf_counter()
    params, accuracy = train(options, digits)
    seconds = time.perf_counter() - start
    _, images, _, labels = digits
    print(f"Of {len(images)} held-out images {accuracy:.1%} are right, after {seconds:.1f} s.\n")

    print("2. Cross-check. The trained model's derivatives, compiled, against JAX's:")
    agree = cross_check(params, images, labels)

    print("\n3. Look inside. From a function to its gradient in four programs:")
    show_programs()

    if accuracy < REQUIRED_ACCURACY:
        print(f"FAILED: the accuracy is under {REQUIRED_ACCURACY:.0%}", file=sys.stderr)
    if not agree:
        print("FAILED: a derivative differs from JAX's", file=sys.stderr)
    return 0 if accuracy >= REQUIRED_ACCURACY and agree else 1


if __name__ == "__main__":
    sys.exit(main())
