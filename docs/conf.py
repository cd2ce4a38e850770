"""The documentation site: ``make docs`` builds it into docs/_build/html, with warnings as errors."""

import re
from importlib.resources import files
from typing import Any

from docutils import nodes

import pyro_vae

project = "pyro-vae"
author = "the pyro-vae maintainers"
version = release = pyro_vae.__version__

extensions = [
    "myst_nb",  # myst_parser, and notebooks as they were executed
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # docs/notebooks/execute.py executes them; what it printed is in the repository
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = "pyro-vae"
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_sidebars = {"*": [], "notebooks/*": []}  # top pages need no second list of pages; those of the API do
# the whole of MathJax 3 with its fonts in one file, from a wheel, so that formulas need no network
mathjax_path = "tex-svg.js"
html_static_path = ["_static", str(files("mathjax") / "static/mathjax/es5" / mathjax_path)]
html_css_files = ["site.css"]


NEIGHBOURS = {
    "torch.Tensor": "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor",
    "torch.nn": "https://docs.pytorch.org/docs/stable/generated/{name}.html",
    "torch.optim": "https://docs.pytorch.org/docs/stable/generated/{name}.html",
    "torch.utils.data": "https://docs.pytorch.org/docs/stable/data.html#{name}",
    "torch.distributions": "https://docs.pytorch.org/docs/stable/distributions.html#{name}",
    "torch": "https://docs.pytorch.org/docs/stable/tensor_attributes.html#{name}",
    "xarray": "https://docs.xarray.dev/en/stable/generated/{name}.html",
    "pandas": "https://pandas.pydata.org/docs/reference/api/{name}.html",
    "numpy": "https://numpy.org/doc/stable/reference/generated/{name}.html",
    "matplotlib.figure": "https://matplotlib.org/stable/api/figure_api.html#{name}",
}
"""Where other libraries document what our signatures name, the longest beginning first: written down and not
asked for, so that the site is built without a network."""

SHORT = {"Tensor": "torch.Tensor", "Module": "torch.nn.Module", "Figure": "matplotlib.figure.Figure"}
ALIASES = {"xr": "xarray", "pd": "pandas", "np": "numpy", "nn": "torch.nn"}


def resolve_neighbour(target: str, contnode: Any) -> Any:
    """A link to the documentation of torch, xarray, …, or ``None``."""
    first, dot, rest = SHORT.get(target, target).partition(".")
    name = ALIASES.get(first, first) + dot + rest
    for beginning, address in NEIGHBOURS.items():
        if name == beginning or name.startswith(f"{beginning}."):
            return nodes.reference("", "", contnode, internal=False, refuri=address.format(name=name))
    return None


def resolve_reexported(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Links to where a thing is defined (guides.normal.X) lead to where it is documented (guides.X)."""
    domain = env.get_domain("py")
    target = node.get("reftarget", "")
    if node.get("refdomain") == "py" and (outside := resolve_neighbour(target, contnode)) is not None:
        return outside
    if not target.startswith("pyro_vae."):
        return None
    path, _, name = target.rpartition(".")
    parents = path.split(".")
    while len(parents) > 1:
        parents.pop()
        documented = ".".join([*parents, name])
        if documented in domain.objects:
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], documented, node, contnode
            )
    return None


LITERAL = re.compile(r"(``.+?``|(?::[\w:]+:)?`[^`]+`)")


def escape_bars(*event: Any) -> None:
    """Docstrings write p(x|z), |raw| and (..., *shape) as people do; reStructuredText reads more into it."""
    lines: list[str] = event[-1]
    math_indent = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() == "Examples":
            return
        if line.strip().startswith(".. math::"):
            math_indent = indent
        elif math_indent is not None and line.strip() and indent <= math_indent:
            math_indent = None
        if math_indent is None:
            parts = LITERAL.split(line)
            parts[::2] = (
                re.sub(r"(?<!\\)\||(?<![\\*\w])\*(?=\w)(?![^*]*\*)", r"\\\g<0>", part) for part in parts[::2]
            )
            lines[i] = "".join(parts)


def setup(app: Any) -> None:
    app.connect("missing-reference", resolve_reexported)
    app.connect("autodoc-process-docstring", escape_bars, priority=400)  # before napoleon
