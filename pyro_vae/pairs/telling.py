"""What it means that a pair does not run on its data, in one sentence with a remedy that applies."""

import re
from collections.abc import Callable

from torch import Tensor

from pyro_vae.arguments import refuse_lazy, without_trace
from pyro_vae.guides.local_guide import LocalGuide
from pyro_vae.pairs.isolation import Program, modules_of, owner

NO_DENSITY = "Error while computing log_prob at site "
"""How Pyro begins where a value is not in the support of its distribution."""

UNINITIALIZED = "uninitialized parameter"
"""What torch's error of a lazy layer has in it that has no parameters yet."""

ENUMERATE = (
    "pyro.infer.config_enumerate(model) with fit(..., "
    "objective=pyro.infer.TraceEnum_ELBO(max_plate_nesting=1))"
)
"""How a discrete latent is summed over."""


def told(error: Exception, batch: tuple[Tensor, ...], name: str, model: Program, guide: Program) -> str:
    """What a program said, without the table of sites that Pyro adds, and what to do about it.

    Parameters
    ----------
    error
        What running the pair has raised.
    batch
        What it ran on.
    name
        What a sentence calls the data.
    model, guide
        The pair.
    """
    while type(error.__cause__) is type(error) and str(error).startswith(str(error.__cause__)):
        error = error.__cause__
    known = told_better(error, model, guide)
    if known:
        return known
    reason = without_trace(error).strip().split("\n")[0].rstrip(".")
    if "same device" in reason:
        return (
            f"model and guide mix devices on {name}, which lies on {batch[0].device}: {reason}; hold tensors "
            "as parameters or buffers, make them on the device of the data, or give device='cpu'"
        )
    others = _of_another_model(model, guide)
    if others:
        return f"model and guide do not run on {name}: {reason}; {others}"
    arguments = f"{len(batch)} argument{'s' * (len(batch) != 1)}"
    shapes = ", ".join(f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in batch)
    integers = not any(part.is_floating_point() for part in batch)
    return (
        f"model and guide do not run on {name}, called with {arguments} of shape {shapes}: {reason}; give "
        f"{name} of the shape and dtype that both take{', such as floats by .float()' * integers}"
    )


def _of_another_model(model: Program, guide: Program) -> str:
    made_for = owner(guide.model) if isinstance(guide, LocalGuide) and guide._model else None
    if made_for is None or owner(model) is None or made_for is owner(model):
        return ""
    return (
        f"the guide was made for another {type(made_for).__name__}: give {type(guide).__name__}(model, ...)"
    )


def told_better(error: Exception, model: Program, guide: Program) -> str:
    """A sentence for what is known, with its remedy; empty for what is not."""
    whole = without_trace(error).strip()
    for words, tells in KNOWN:
        if words in whole.split("\n")[0]:
            return tells(whole, error, model, guide)
    return ""


def _density(whole: str, error: Exception, _model: Program, _guide: Program) -> str:
    """Of a value that is drawn, not observed: those are looked at before."""
    site = whole.removeprefix(NO_DENSITY).split("\n")[0].strip(": .")
    cause = str(error.__cause__ or whole).strip().splitlines()[0]
    found = re.search(r"support \((\w+).*?\) of the distribution (\w+)", cause)
    if found is None:
        return f"site {site} has no density: {cause[:200].rstrip(':')}; change its value or distribution"
    return (
        f"site {site} has a value outside of the support of its {found[2]} ({found[1]}); give the guide's "
        "site of that name the support that it has in the model"
    )


def _several(whole: str, _error: Exception, _model: Program, _guide: Program) -> str:
    reason = whole.split("\n")[0].rstrip(".")
    return f"{reason.replace('Multiple', 'there are several')}; give each a name of its own"


def _unlike(whole: str, _error: Exception, _model: Program, _guide: Program) -> str:
    return f"m{whole.splitlines()[0].rstrip('.')[1:]}; give the site one shape in both"


def _no_plate(whole: str, _error: Exception, _model: Program, _guide: Program) -> str:
    found = re.search(r"at site \"(\w+)\".*?Expected (\[.*?\]), actual (\[.*?\])", whole, re.DOTALL)
    if found is None:
        return ""
    site, expected, actual = found.groups()
    plates = "no plate" if expected == "[]" else f"plates of shape {expected}"
    return (
        f"site {site!r} has independent values of shape {actual} in {plates}, so that Pyro cannot tell the "
        f"observations apart; write it in `with pyro.plate('data', len(x)):`, and declare the dimensions "
        "within an observation by .to_event(1)"
    )


def _discrete(whole: str, _error: Exception, _model: Program, guide: Program) -> str:
    found = re.search(r"discrete sample site '(\w+)'", whole)
    if found is None:
        return ""
    kind = type(owner(guide) or guide).__name__
    return (
        f"latent {found[1]!r} is discrete, and {kind} draws continuous latents only; hide it from the guide, "
        f"{kind}(pyro.poutine.block(model, hide=[{found[1]!r}])), and sum over it: {ENUMERATE}"
    )


def _arity(whole: str, _error: Exception, _model: Program, _guide: Program) -> str:
    found = re.search(
        r"(\S+)\(\) takes (?:from \d+ to )?(\d+) positional arguments? but (\d+) were given", whole
    )
    if found is None:
        return ""
    self_too = "." in found[1] and "<locals>" not in found[1]
    takes, given = int(found[2]) - self_too, int(found[3]) - self_too
    return (
        f"data come as {given} argument{'s' * (given != 1)}, and {found[1]} takes {takes}; give the parts of "
        "the data that model and guide take, a tuple where they are several, or let both take all"
    )


def _dtypes(whole: str, _error: Exception, _model: Program, _guide: Program) -> str:
    return (
        "a layer of model or guide has parameters of another dtype than what reaches it "
        f"({whole.splitlines()[0]}); make both programs one dtype, such as by .float()"
    )


def _lazy(_whole: str, _error: Exception, model: Program, guide: Program) -> str:
    refuse_lazy(*modules_of(guide, model))
    return (
        "a lazy layer of model or guide has no parameters before its first call; call the network that it is "
        "in once on some rows of data before"
    )


KNOWN: tuple[tuple[str, Callable[[str, Exception, Program, Program], str]], ...] = (
    (NO_DENSITY, _density),
    ("Multiple sample sites named", _several),
    ("Model and guide", _unlike),
    ("invalid log_prob shape", _no_plate),
    ("cannot handle discrete sample site", _discrete),
    (UNINITIALIZED, _lazy),
    ("positional argument", _arity),
    ("must have the same dtype, but got", _dtypes),
)
"""What errors of Pyro and torch have in them, and what tells them better."""
