"""What the documentation's site adds to Sphinx: pages of linked files, and names that are found or complained of."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

pytest.importorskip("myst_parser", reason="pip install '.[docs]'")
pytest.importorskip("sphinx", reason="pip install '.[docs]'")

from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # within Sphinx and MyST

SITE = Path(__file__).resolve().parent.parent / "docs" / "site"
MODULE = '''
"""A module."""

__all__ = ["Thing", "make"]


class Thing:
    """A thing, see `make`; not `thing`, and never `nothing.at.all`."""


def make(what: "Thing | int") -> Thing:
    """Makes a :class:`Thing`, as :func:`{link}` does."""
'''
API = """
API
===

.. automodule:: made_up_module
   :members: {members}
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A site of one page and one module -> what Sphinx warned of; the site is in out/."""
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def build(page: str = "", *, link: str = "make", members: str = "Thing, make") -> str:
        files = {
            "README.md": f"# Title\n\n{page}\n\n```{{toctree}}\ndocs/page\ndocs/api\n```\n",
            "docs/page.md": "# Page\n\n[the code](../csrc/a.cuh), [folder](../csrc), [home](../README.md#title)\n",
            "docs/api.rst": API.format(members=members),
            "csrc/a.cuh": "int answer() { return 42; }\n",
            "csrc/deep/b.csv": "x,y\n1,2\n",
            "csrc/deep/c.png": "no picture",
            "modules/made_up_module.py": MODULE.format(link=link),
        }
        for name, text in files.items():
            path = tmp_path / "source" / name if not name.startswith("modules") else tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        warnings = io.StringIO()
        # As in docs/site/conf.py.
        settings = {
            "root_doc": "README",
            "include_patterns": ["README.md", "docs/**"],
            "extensions": ["myst_parser", "sphinx.ext.autodoc", "repository", "names"],
            "nitpicky": True,
            "default_role": "obj",
            "myst_heading_anchors": 4,
            "public_packages": ["made_up_module"],
        }
        source, out = tmp_path / "source", tmp_path / "out"
        with docutils_namespace():
            Sphinx(source, None, out, out / "doctrees", "html", settings, io.StringIO(), warnings).build()
        return warnings.getvalue()

    yield build
    for name in ("made_up_module", "names", "repository"):
        sys.modules.pop(name, None)


def test_files_and_folders_that_are_linked_have_pages(build, tmp_path):
    assert build("[the code](csrc/a.cuh)") == ""
    out = tmp_path / "out"
    assert 'href="../repository/csrc/a.cuh.html"' in (out / "docs" / "page.html").read_text()
    assert 'href="repository/csrc/a.cuh.html"' in (out / "README.html").read_text()
    assert "42" in (out / "repository" / "csrc" / "a.cuh.html").read_text()
    listing = (out / "repository" / "csrc.html").read_text()
    assert 'href="csrc/a.cuh.html"' in listing
    assert 'href="csrc/deep.html"' in listing
    deep = (out / "repository" / "csrc" / "deep.html").read_text()
    assert 'href="deep/b.csv.html"' in deep
    # What is no text is there as it is.
    assert 'href="deep/c.png"' in deep
    assert (out / "repository" / "csrc" / "deep" / "c.png").read_text() == "no picture"


@pytest.mark.parametrize("link", ["csrc/missing.cuh", "missing", "docs/page.md#missing", "../outside.md"])
def test_links_to_nothing_are_warned_of(build, link):
    assert "myst.xref_missing" in build(f"[text]({link})")


def test_names_in_docstrings_are_links_without_their_modules(build, tmp_path):
    assert build() == ""
    text = (tmp_path / "out" / "docs" / "api.html").read_text()
    assert text.count('href="#made_up_module.make"') >= 3  # of both docstrings, and the signature's own
    assert '<code class="xref py py-obj docutils literal notranslate"><span class="pre">thing</span></code>' in text


@pytest.mark.parametrize(
    ("link", "warns"),
    [
        ("made_up_module.make", False),
        ("torch.nn.functional.relu", False),  # somebody else's
        ("mkae", True),
        ("made_up_module.mkae", True),
        ("Thing.mkae", True),
    ],
)
def test_names_that_nothing_has_are_warned_of(build, link, warns):
    assert (f"reference target not found: {link}" in build(link=link)) == warns


def test_public_names_without_a_page_are_warned_of(build):
    assert "made_up_module.make is public, and no page of docs/api has it" in build(members="Thing", link="Thing")
