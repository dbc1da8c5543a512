"""Links to files and folders of the repository that are no pages of the site: each gets a page that shows it.

A link in Markdown is relative to its file, so `[rule.cuh](../csrc/cuda/rule.cuh)` works wherever the repository is
looked at. Here it leads to a page with that text, its syntax highlighted, or with the list of what a folder holds.
"""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

FOLDER = "repository"  # where they lie in the site
LARGEST = 100_000  # bytes of a text that gets a page; what is larger, and pictures, are copied as they are
TEXTS = {".cpp", ".cu", ".cuh", ".h", ".py", ".sh", ".md", ".rst", ".yaml", ".json", ".csv", ".cmake", ".toml", ""}


class LinkRepositoryFiles(SphinxTransform):
    """Points links to files and folders at what the site has of them; of those that do not exist, Sphinx warns."""

    default_priority = 5  # before Sphinx collects what is to be downloaded

    def apply(self, **kwargs: Any) -> None:
        root = Path(self.env.srcdir).resolve()
        to_root = "../" * self.env.docname.count("/")
        for link in list(self.document.findall(addnodes.download_reference)) + list(
            self.document.findall(addnodes.pending_xref)
        ):
            if link.get("reftype") != "myst" or link.get("refdomain"):
                continue  # no link in Markdown, or one to a page
            path = Path(self.env.relfn2path(link["reftarget"], self.env.docname)[1]).resolve()
            if not path.exists() or not path.is_relative_to(root):
                continue
            self.env.metadata[self.env.docname].setdefault("repository", set()).add(path)
            link.replace_self(nodes.reference("", "", *link.children, refuri=to_root + address(path, root)))


def address(path: Path, root: Path) -> str:
    """Where the site has a file or folder, relative to its root."""
    name = f"{FOLDER}/{path.relative_to(root).as_posix()}"
    return f"{name}.html" if path.is_dir() or _has_page(path) else name


def _has_page(path: Path) -> bool:
    return path.suffix in TEXTS and path.stat().st_size <= LARGEST


def linked(app: Sphinx) -> list[Path]:
    """All files and folders that pages link to, with everything in these folders."""
    found: set[Path] = set()
    for facts in app.env.metadata.values():
        for path in facts.get("repository", ()):
            found |= {path, *path.rglob("*")} if path.is_dir() else {path}
    return sorted(found)


def collect_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages, and copies of the files that get none."""
    root = Path(app.srcdir).resolve()
    for path in linked(app):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            body = _listing(path)
        elif _has_page(path):
            body = _highlighted(app, path)
        else:
            copy = Path(app.outdir) / address(path, root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            continue
        body = f"<h1><code>{html.escape(name)}</code></h1>\n{body}"
        yield f"{FOLDER}/{name}", {"title": name, "body": body}, "page.html"


def _highlighted(app: Sphinx, path: Path) -> str:
    try:
        language = get_lexer_for_filename(path.name).aliases[0]
    except ClassNotFound:
        language = "cuda" if path.suffix == ".cuh" else "text"
    return app.builder.highlighter.highlight_block(path.read_text(), language, linenos=False, force=True)


def _listing(folder: Path) -> str:
    rows = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        # Pages lie beside the folders that they show.
        target = address(path, folder.parent).removeprefix(f"{FOLDER}/")
        rows.append(f'<li><a href="{html.escape(target)}">{html.escape(path.name)}{"/" * path.is_dir()}</a></li>')
    return "<ul>\n" + "\n".join(rows) + "\n</ul>"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(LinkRepositoryFiles)
    app.connect("html-collect-pages", collect_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
