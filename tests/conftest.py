"""What test files ask for by name: `pytestmark = pytest.mark.usefixtures("quick_compilation")`.

XLA's compilations are most of what the tests take, and many of them are the same: they are kept in
`.pytest_cache`, for the other workers and for the next run. `make clean` forgets them.
"""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """What is imported by now stays: Python need not look through it for garbage each time, and not
    after each small program."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`run_once(file)` runs a test file as a script, which gets a folder to write to, and returns
    the folder. The first worker that asks runs it; the others wait for its results."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def run(file: str) -> Path:
        folder, done = (shared / f"{Path(file).stem}{end}" for end in ("", ".done"))
        with open(shared / f"{Path(file).stem}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir(exist_ok=True)
                subprocess.run([sys.executable, "-W", "error", file, str(folder)], check=True)
                done.touch()
        return folder

    return run


@pytest.fixture
def every_object() -> Iterator[None]:
    """`gc.get_objects` also returns what is there since the modules were imported."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture
def few_objects() -> Iterator[None]:
    """`gc` looks only at what the test makes: for one that collects garbage again and again, as
    `jax.checking_leaks` does, what the tests before it have left behind takes most of the time."""
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Thousands of tiny programs are compiled: what XLA's optimizer makes of them is not what is
    tested, and takes most of the time. So it is in the processes that such tests start."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture(scope="module")
def float64(quick_compilation: None) -> Iterator[None]:
    """Float64, and quick compilation."""
    with jax.enable_x64(True):
        yield
