"""What test files ask for by name: `pytestmark = pytest.mark.usefixtures("quick_compilation")`."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Thousands of tiny programs are compiled: what XLA's optimizer makes of them is not what is
    tested, and takes most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture(scope="module")
def float64(quick_compilation: None) -> Iterator[None]:
    """Float64, and quick compilation."""
    with jax.enable_x64(True):
        yield
