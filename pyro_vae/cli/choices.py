"""What can be chosen, as the help shows it and the shell completes it: known without importing torch."""

from collections.abc import Callable, Sequence

CHOICES: dict[str, tuple[str, ...]] = {
    "scale": (
        "logvar",
        "logstd",
        "softplus",
        "softplus-var",
        "explinear",
        "stdplus",
        "bounded",
        "softclip",
        "clamp",
        "abs",
    ),
    "guide": ("normal", "multivariate", "flow"),
    "objective": ("elbo", "iwae", "renyi", "stl"),
    "schedule": ("cosine", "constant"),
    "activation": ("elu", "gelu", "leaky-relu", "relu", "sigmoid", "silu", "softplus", "tanh"),
    "likelihood": (
        "bernoulli",
        "binomial",
        "categorical",
        "continuous-bernoulli",
        "negative-binomial",
        "normal",
        "poisson",
        "student-t",
    ),
    "data": ("digits", "mnist", "fashion-mnist", "kmnist"),
    "device": ("auto", "cpu", "cuda", "mps"),
}
"""By option. Nothing is refused for not being here: the library says what it knows, and what is near."""


def listed(option: str) -> str:
    """The choices in words.

    >>> listed("guide")
    'normal, multivariate or flow'
    """
    *most, last = CHOICES[option]
    return f"{', '.join(most)} or {last}"


def completion(option: str) -> Callable[[str], Sequence[str]]:
    """What typer asks for the rest of a word.

    >>> completion("scale")("soft")
    ['softplus', 'softplus-var', 'softclip']
    """
    return lambda incomplete: [name for name in CHOICES[option] if name.startswith(incomplete)]
