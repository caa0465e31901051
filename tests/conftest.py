"""What test files ask for by name: `pytestmark = pytest.mark.usefixtures("quick_compilation")`.

XLA's compilations are most of what the tests take, and many of them are the same: they are kept in
`.pytest_cache`, for the other workers and for the next run. `make clean` forgets them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import jax
import pytest


def pytest_configure(config: pytest.Config) -> None:
    kept = {
        "jax_compilation_cache_dir": str(config.rootpath / ".pytest_cache" / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in kept.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the programs that tests start
    # To share a program among threads takes longer than to compile it.
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if jax.__version_info__ < (0, 11):
        # XLA's newer emitters take twice as long for a small program; later, there is no other.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    else:
        # But what is not fused with anything need not go there.
        flags.append("--xla_disable_hlo_passes=fusion-wrapper")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays: Python need not look through it for garbage each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def every_object() -> Iterator[None]:
    """`gc.get_objects` also returns what is there since the modules were imported."""
    gc.unfreeze()
    yield
    gc.freeze()


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
