"""The objectives of ADBench, from their definitions, in float64.

    F. Srajer, Z. Kukelova, A. Fitzgibbon, A benchmark of selected algorithmic differentiation
    tools on some problems in computer vision and machine learning, Optimization Methods and
    Software 33 (2018)

The sizes are published ones, the data drawn as there: at random, from a fixed seed (and for bundle
adjustment one camera, point and feature, repeated).  The hand is made up: a skeleton and a mesh of
the published numbers of bones, vertices and parameters, as the scanned one is not at hand.

Read next: `fields.py`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.problem import Problem

# ---- Gaussian mixture ----------------------------------------------------------------------------


def log_sum_exp(x: Any, axis: int, np: Any) -> Any:
    largest = np.amax(x, axis=axis, keepdims=True)
    return np.log(np.sum(np.exp(x - largest), axis=axis)) + np.squeeze(largest, axis)


def gaussian_mixture(d: int, k: int, n: int) -> Problem:
    """The log posterior of a mixture of `k` Gaussians in `R^d`, given `n` points.

    The inverse of the covariance is `Q_k^T Q_k`, with `Q_k` lower triangular: `exp(q_k)` on the
    diagonal, `l_k` below it.  Its prior is Wishart's, with `gamma = 1` and `m = 0`.

        sum_i log sum_k exp(alpha_k + sum q_k - |Q_k (x_i - mu_k)|^2 / 2) - n log sum_k exp alpha_k
            + sum_k gamma^2 / 2 (|exp q_k|^2 + |l_k|^2) - m sum q_k  +  a constant
    """
    rng = np.random.default_rng(0)
    gamma, m = 1.0, 0
    below = np.tril_indices(d, -1)
    # place[i, j]: where in l_k the entry i, j of Q_k is, or its last entry, a zero put there
    place = np.full((d, d), len(below[0]))
    place[below] = np.arange(len(below[0]))
    x = rng.normal(size=(n, d))
    params = {
        "alphas": rng.normal(size=k),
        "means": rng.random(size=(k, d)),
        "logs": rng.normal(size=(k, d)),
        "below": rng.normal(size=(k, len(below[0]))),
    }
    degrees = d + m + 1
    log_gamma = 0.25 * d * (d - 1) * np.log(np.pi)
    log_gamma += sum(math.lgamma(0.5 * (degrees - j)) for j in range(d))
    of_prior = degrees * d * (np.log(gamma) - 0.5 * np.log(2.0)) - log_gamma
    constant = -0.5 * n * d * np.log(2.0 * np.pi) - k * of_prior

    def f(params: dict[str, Any], x: Any, np: Any = jnp) -> Any:
        alphas, means = params["alphas"], params["means"]
        logs, below = params["logs"], params["below"]
        diagonal = np.exp(logs)
        padded = np.concatenate([below, 0.0 * below[:, :1]], axis=1)
        lower = padded[:, place]
        centered = x[:, None, :] - means
        scaled = diagonal * centered + np.einsum("kij,nkj->nki", lower, centered)
        exponents = alphas + np.sum(logs, axis=1) - 0.5 * np.sum(scaled**2, axis=2)
        fit = np.sum(log_sum_exp(exponents, 1, np)) - n * log_sum_exp(alphas, 0, np)
        prior = 0.5 * gamma**2 * (np.sum(diagonal**2) + np.sum(below**2)) - m * np.sum(logs)
        return constant + fit + prior

    return Problem(f, params, (x,))


# ---- bundle adjustment ---------------------------------------------------------------------------


def rotated(rotation: Any, x: Any) -> Any:
    """Rodrigues's formula: turn `x` by the angle `|rotation|` about the axis `rotation`."""
    angle = jnp.sqrt(jnp.sum(rotation**2))
    axis = rotation / angle
    along = axis * (axis @ x) * (1.0 - jnp.cos(angle))
    return x * jnp.cos(angle) + jnp.cross(axis, x) * jnp.sin(angle) + along


def residual(unknown: dict[str, Any], feature: Any) -> tuple[Any, Any]:
    """How far from where it was seen a point appears in a camera; and `1 - w^2`.

    A camera has a rotation, a centre, a focal length, a principal point, and two coefficients of
    radial distortion: 11 numbers.
    """
    rotation, centre, focal, principal, (kappa1, kappa2) = jnp.split(
        unknown["camera"], (3, 6, 7, 9)
    )
    seen = rotated(rotation, unknown["point"] - centre)
    plane = seen[:2] / seen[2]
    square = jnp.sum(plane**2)
    distorted = plane * (1.0 + kappa1 * square + kappa2 * square**2)
    projected = distorted * focal + principal
    weight = unknown["weight"]
    return weight * (projected - feature), 1.0 - weight**2


def bundle_adjustment(cameras: int, points: int, observations: int) -> Problem:
    """The Jacobian of all residuals is sparse: a block for each observation, by `jax.vmap`."""
    rng = np.random.default_rng(0)
    camera, point = rng.normal(size=11), rng.normal(size=3)
    feature, weight = rng.normal(size=2), rng.normal()
    all_cameras, all_points = np.tile(camera, (cameras, 1)), np.tile(point, (points, 1))
    i = np.arange(observations)
    unknown = {
        "camera": all_cameras[i % cameras],
        "point": all_points[i % points],
        "weight": np.full(observations, weight),
    }
    return Problem(residual, unknown, (np.tile(feature, (observations, 1)),))


# ---- LSTM ----------------------------------------------------------------------------------------


def lstm(layers: int, characters: int, bits: int) -> Problem:
    """A model of text with gates that are elementwise: `sigmoid(w * x + b)`, without matrices.

    It predicts each character, `bits` numbers, from those before; the loss is the mean of
    `-y . (z - log(2 + sum exp z))` over the predictions `z`.
    """
    rng = np.random.default_rng(0)
    params = {
        # for each layer the weights and the biases of forget, take, give and change
        "main": rng.random(size=(layers, 2, 4, bits)),
        "extra": rng.random(size=(3, bits)),  # the weights in, the weights and the biases out
    }
    state = rng.random(size=(layers, 2, bits))
    text = (rng.random(size=(characters, bits)) < 0.5).astype(float)

    def f(params: dict[str, Any], state: Any, text: Any) -> Any:
        weight_in, weight_out, bias_out = params["extra"]

        def layer(weights_and_biases, hidden, cell, x):
            w, b = weights_and_biases
            forget = jax.nn.sigmoid(x * w[0] + b[0])
            take = jax.nn.sigmoid(hidden * w[1] + b[1])
            give = jax.nn.sigmoid(x * w[2] + b[2])
            change = jnp.tanh(hidden * w[3] + b[3])
            cell = cell * forget + take * change
            return give * jnp.tanh(cell), cell

        def step(state, now_and_next):
            now, following = now_and_next
            x, after = now * weight_in, []
            for i in range(layers):
                x, cell = layer(params["main"][i], state[i, 0], state[i, 1], x)
                after.append(jnp.stack([x, cell]))
            z = x * weight_out + bias_out
            fit = following @ (z - jnp.log(2.0 + jnp.sum(jnp.exp(z))))
            return jnp.stack(after), fit

        _, fits = lax.scan(step, state, (text[:-1], text[1:]))
        return -jnp.sum(fits) / (bits * (characters - 1))

    return Problem(f, params, (state, text))


# ---- hand tracking -------------------------------------------------------------------------------

FINGERS = 5
# The root, the palm, and four bones for each finger, the last its tip: 22 bones.
PARENTS = (
    -1,
    0,
    *(1 if bone == 0 else 4 * f + bone + 1 for f in range(FINGERS) for bone in range(4)),
)


def rotations(angles: Any) -> Any:
    """`R_z R_y R_x` for each triple of angles."""
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(angles).T, jnp.sin(angles).T
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return jnp.moveaxis(jnp.array(rows), -1, 0)


def bone_angles(bends: Any) -> Any:
    """Four parameters for each finger: its first bone bends and spreads, the next two bend."""
    bends = bends.reshape(FINGERS, 4)
    angles = jnp.zeros((FINGERS, 4, 3))
    angles = angles.at[:, 0, 0].set(bends[:, 0]).at[:, 0, 1].set(bends[:, 1])
    angles = angles.at[:, 1, 0].set(bends[:, 2]).at[:, 2, 0].set(bends[:, 3])
    return jnp.concatenate([jnp.zeros((2, 3)), angles.reshape(-1, 3)])


def affine(matrices: Any) -> Any:
    """3x3 matrices as 4x4 ones."""
    return jnp.zeros((len(matrices), 4, 4)).at[:, :3, :3].set(matrices).at[:, 3, 3].set(1.0)


def hand_residuals(theta: Any, hand: dict[str, Any]) -> Any:
    """From each measured point to the vertex that belongs to it, of the hand in the pose `theta`.

    `theta` is a rotation and a translation of the whole, then 20 angles of the fingers.  A bone's
    place is its parent's, times its own at rest, times its rotation; a vertex is moved by the mean
    of its bones' motions since rest, weighted (linear blend skinning).
    """
    turned = hand["at_rest"] @ affine(rotations(bone_angles(theta[6:])))
    places: list[Any] = []
    for bone, parent in enumerate(PARENTS):
        places.append(turned[bone] if parent < 0 else places[parent] @ turned[bone])
    motions = jnp.stack(places) @ hand["inverse_places_at_rest"]
    mesh = jnp.einsum("bij,vj,vb->vi", motions, hand["vertices"], hand["weights"])[:, :3]
    posed = jax.vmap(rotated, (None, 0))(theta[:3], mesh) + theta[3:6]
    return hand["measured"] - posed[hand["correspondences"]]


def hand_tracking(vertices: int, correspondences: int) -> Problem:
    rng = np.random.default_rng(0)
    bones = len(PARENTS)
    at_rest = np.tile(np.eye(4), (bones, 1, 1))
    at_rest[:, :3, 3] = rng.normal(size=(bones, 3))
    places: list[np.ndarray] = []
    for bone, parent in enumerate(PARENTS):
        places.append(at_rest[bone] if parent < 0 else places[parent] @ at_rest[bone])
    weights = rng.random(size=(vertices, bones))
    hand = {
        "at_rest": at_rest,
        "inverse_places_at_rest": np.linalg.inv(places),
        "vertices": np.concatenate(
            [rng.normal(size=(vertices, 3)), np.ones((vertices, 1))], axis=1
        ),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "measured": rng.normal(size=(correspondences, 3)),
        "correspondences": rng.integers(vertices, size=correspondences),
    }
    return Problem(hand_residuals, rng.normal(size=26), (hand,))
