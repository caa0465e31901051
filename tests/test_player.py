"""`explain.play`: each frame lights what belongs together, and the page needs nothing else.

Where there is a Chromium, the page is also played to its end in it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from functrans.explain import play
from functrans.explain.player import Player

pytestmark = pytest.mark.usefixtures("quick_compilation")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


def loss(w1, w2):
    product = w2 * jnp.log(w1)
    return product + jnp.sqrt(product)


def network(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


def deep(x):
    for _ in range(100):  # more steps than a graph draws one by one
        x = jnp.sin(x)
    return x


def several(x):
    low, high = jnp.split(x, 2)
    values, _ = lax.top_k(low * high, 1)
    return values[0] + 2.0


def loop(x):
    total, sums = lax.scan(lambda c, v: (c * v, c + v), 1.0, x)
    return lax.cond(total > 1, jnp.sin, jnp.cos, total) + jnp.sum(sums)


W = [np.full((3, 3), 0.2, np.float32)] * 2
PROGRAMS = {
    "scalars": (loss, (2.0, 5.0)),
    "a network": (network, (W, np.ones(3, np.float32))),
    "repeated steps": (deep, (0.5,)),
    "a loop": (loop, (np.linspace(0.5, 1.5, 7),)),
    "a loop, opened": (loop, (np.linspace(0.5, 1.5, 7),)),
    "steps with several results": (several, (np.arange(4.0, dtype=np.float32),)),
}
pages = pytest.mark.parametrize("name", PROGRAMS)


def page(name: str) -> Player:
    fun, args = PROGRAMS[name]
    return play(fun, *args, unfold="opened" in name)


def data(player: Player) -> dict:
    found = re.search(r"^const \{frames, values, adjoints\} = (.*);$", player.html, re.M)
    assert found
    return json.loads(found[1])


@pages
def test_what_a_frame_lights_is_on_the_page(name: str) -> None:
    player = page(name)
    ids = set(re.findall(r'id="([^"]+)"', player.html))
    rows = set(re.findall(r'data-row="(\d+)"', player.html))
    frames = data(player)["frames"]
    for frame in frames:
        assert set(frame["edges"]) <= ids or name == "repeated steps"  # which have no own edges
        assert set(frame["nodes"]) <= ids and {*map(str, frame["rows"])} <= rows
        assert not frame["line"] or frame["line"] in ids
    lit = [row for frame in frames for row in frame["rows"]]
    assert lit == sorted(lit) and {*map(str, lit)} == rows  # each row once, in its order


@pages
def test_the_last_frame_shows_the_gradient(name: str) -> None:
    player = page(name)
    last = data(player)["frames"][-1]
    assert last["said"].startswith("<b>the gradient</b> ∂y/∂") and last["rows"]


def test_the_numbers_and_the_lines() -> None:
    player = page("scalars")
    frames = data(player)["frames"]
    said = [re.sub("<[^>]*>", "", frame["said"]) for frame in frames]
    assert said[2] == "forward v₂ = v₀ × v₁ = 3.4657"
    lines = [int(frame["line"].rpartition(":")[2]) for frame in frames[1:5]]
    assert [line - loss.__code__.co_firstlineno for line in lines] == [1, 1, 2, 2]
    assert said[-1] == "the gradient ∂y/∂w1 = v̄₋₁ = 3.1714; ∂y/∂w2 = v̄₀ = 0.87931"
    (of_product,) = [a for a in data(player)["adjoints"] if len(a["totals"]) == 2]
    assert of_product["totals"] == [[7, "v̄₂ = 1"], [8, "v̄₂ = 1.2686"]]


@pages
def test_a_page_needs_no_network(name: str, tmp_path: Path) -> None:
    player = page(name)
    asked = re.findall(
        r"""(?:src|href)=["'](?!#)([^"']*)["']|url\(([^)]*)\)|@import""", player.html
    )
    assert not asked and "fetch(" not in player.html
    player.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == player.html
    assert "srcdoc=" in player._repr_html_()


def test_a_round_is_said() -> None:
    said = [
        re.sub("<[^>]*>", "", frame["said"]) for frame in data(page("a loop, opened"))["frames"]
    ]
    assert "forward step 3 of scan v₇ = v₄ × v₆ = 0.27778" in said
    assert any(text.startswith("reverse branch 0 of cond ") for text in said)


def test_a_vector_is_no_start() -> None:
    with pytest.raises(TypeError, match="play"):
        play(jnp.sin, np.ones(3))
    assert play(jnp.sin, np.ones(3), cotangent=np.ones(3)).title.startswith("sin")


if CHROMIUM:

    @pages
    def test_a_browser_plays_the_page_to_its_end(name: str, tmp_path: Path) -> None:
        page(name).save(tmp_path / "page.html")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=420,900"]
        address = f"{(tmp_path / 'page.html').as_uri()}#end"
        run = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path}", "--dump-dom", address]
        shown = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True).stdout
        count = len(data(page(name))["frames"])
        assert f'<span id="count">{count} / {count}</span>' in shown
        assert "the gradient</b> ∂y/∂" in shown
        assert not re.search(r'<tr[^>]*class="later', shown)
