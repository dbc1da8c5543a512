"""The documentation's site: `make docs`. Its pages are the Markdown files of the repository, as they lie there, and the
pages in docs/api, whose text is the docstrings.
"""

import re
import sys
from pathlib import Path

from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docstrings import prepare_docstring

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

project = "ckd-kernels"
version = release = re.search(r'^__version__ = "(.+)"', (ROOT / "ckd_kernels" / "__init__.py").read_text(), re.M)[1]

# Site of the repository's root, so that a link from one file to another is the same here as in the repository.
root_doc = "README"
include_patterns = [
    "*.md", "docs/*.md", "docs/api/*.rst", "examples/README.md", "benchmarks/results/*/report.md",
]  # fmt: skip
exclude_patterns = ["**/.*", ".*", "build", "dist", "runs", "out", "shared", "tests", "csrc", "python", "ckd_kernels"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "repository", "names"]

nitpicky = True  # a reference to a name that does not exist is a warning, and warnings are errors: see names.py
default_role = "obj"
highlight_language = "text"  # of blocks that name none
myst_heading_anchors = 4  # the same as in the repository's web interface, for links such as kernels.md#layouts

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # of a method that PyTorch or Lightning calls, theirs says nothing of ours
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
viewcode_line_numbers = True
public_packages = [
    "ckd_kernels", "ckd_kernels.layers", "ckd_kernels.surrogate", "ckd_kernels.interop.nir", "ckdsnn.losses",
    "ckdsnn.models", "ckdsnn.data", "ckdsnn.training", "ckdsnn.analysis",
]  # fmt: skip

# Nothing is fetched from elsewhere, neither when the site is built nor when it is read.
html_theme = "furo"
html_title = f"ckd-kernels {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

API = ["ckd_kernels", "layers", "surrogate", "losses", "methods", "models", "data", "training", "analysis"]
CONTENTS = {
    "Use": [
        *("docs/install", "examples/README", "docs/migrating", "docs/training", "docs/segmentation", "docs/sweeps"),
        "docs/analysis",
    ],
    "API": [f"docs/api/{page}" for page in API],
    "Results": ["docs/results", "docs/verdicts", "docs/benchmarks"],
    "Understand and change": ["docs/architecture", "docs/kernels", "CONTRIBUTING", "CHANGELOG"],
}


def add_contents(app, docname, source):
    """The navigation, which would be noise in the files themselves."""
    if docname == "README":
        source[0] += "".join(_toctree(pages, f":caption: {caption}\n") for caption, pages in CONTENTS.items())
    elif docname == "docs/benchmarks":
        reports = sorted((ROOT / "benchmarks" / "results").glob("*/report.md"))
        source[0] += _toctree([f"{r.parent.name} </benchmarks/results/{r.parent.name}/report>" for r in reports])


def _toctree(pages, options=""):
    pages = [page if "<" in page else f"/{page}" for page in pages]
    return "\n\n```{toctree}\n:hidden:\n:glob:\n" + options + "\n" + "\n".join(pages) + "\n```\n"


def skip_fields(app, what, name, obj, skip, options):
    """The fields of a named tuple say nothing but their number."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def plain_words(app, what, name, obj, options, lines):
    """What napoleon and reStructuredText read into plain words: a type before a colon, a list that begins with K."""
    if what == "property":
        lines[:] = GoogleDocstring(prepare_docstring(obj.__doc__ or ""), app.config, app, "method").lines()
    lines[:] = [re.sub(r"^( {8,})(?=[A-Z]\.$)", r"\1\\", line) for line in lines]


def plain_signature(app, what, name, obj, options, signature, returns):
    """`options: dict = ...` where a dataclass makes a new one each time: with <factory>, Sphinx cannot read it. And of
    all classes named Options, a method's own."""
    plain = (signature or "").replace("<factory>", "...")
    return re.sub(r"(?<![\w.])Options\b", f"{name.split('.')[-1]}.Options", plain) or None, returns


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", plain_words, priority=501)  # behind napoleon
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", skip_fields)
