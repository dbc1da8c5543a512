"""Names of the API: every public one is on the site, a docstring's links lead to it, and none leads nowhere.

A docstring is read in an editor first. There `Neuron` says it all, and `ckd_kernels.Neuron` would be in the way; so a
name without its module is looked up in all of the API.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from operator import attrgetter

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

LOGGER = logging.getLogger(__name__)


class ModulesOf(SphinxDirective):
    """`.. modules-of:: PACKAGE` documents every module of a package, with its title; after it, names to leave out."""

    required_arguments = 1
    optional_arguments = 20
    has_content = False

    def run(self) -> list[nodes.Node]:
        package, *left_out = self.arguments
        lines = []
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name not in left_out:
                lines += [module.name, "-" * len(module.name), "", f".. automodule:: {package}.{module.name}", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def find(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Node | None:
    """What to show for a name that Sphinx did not find from where it stands; None where nothing has that name."""
    if node.get("refdomain") != "py":
        return None
    name, written = node["reftarget"], isinstance(shown, nodes.literal)
    any_kind = node["reftype"] != "obj"  # single backticks, with which arguments are written too
    objects = env.domains.python_domain.objects
    ends = {
        full: entry
        for full, entry in objects.items()
        if f".{full}".endswith(f".{name}") and (any_kind or entry.objtype in ("class", "function", "exception"))
    }
    exported = {full: entry for full, entry in ends.items() if not entry.aliased}
    if len(exported) == 1:
        (full, entry), *_ = exported.items()
        return make_refnode(app.builder, node.get("refdoc", env.docname), entry.docname, entry.node_id, shown, full)
    # An annotation may name anything. What somebody has written as a link must be there, if only in the source.
    fine = not written or not any_kind or bool(ends) or _is_in_the_source(name, app.config.public_packages)
    return shown if fine else None


def _is_in_the_source(name: str, packages: list[str]) -> bool:
    if name.split(".")[0] not in {package.split(".")[0] for package in packages}:
        return importlib.util.find_spec(name.split(".")[0]) is not None  # somebody else's
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
            return cut == len(parts) or bool(attrgetter(".".join(parts[cut:]))(module))
        except (ImportError, AttributeError):
            continue
    return False


def check_all_are_there(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of names in `__all__` of a public package that no page documents."""
    documented = {*env.domains.python_domain.objects, *env.domains.python_domain.modules}
    for package in app.config.public_packages:
        for name in importlib.import_module(package).__all__:
            if f"{package}.{name}" not in documented:
                LOGGER.warning("%s.%s is public, and no page of docs/api has it", package, name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("public_packages", [], "env", list)
    app.add_directive("modules-of", ModulesOf)
    app.connect("missing-reference", find)
    app.connect("env-check-consistency", check_all_are_there)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
