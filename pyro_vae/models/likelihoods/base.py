"""What every likelihood is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.arguments import brief, kind

_VALUES_AT_ONCE = 4_194_304


class Likelihood(ABC):
    """What all likelihoods have.

    A new one defines `family`, `requirement`, `invalid` and `marginal_output`.
    """

    @property
    def outputs(self) -> int:
        """How many numbers per feature the decoder gives."""
        return 1

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:  # noqa: ARG002
        """Where the parameter that is learned beside the decoder starts; None if there is none."""
        return None

    def distribution(
        self, output: Tensor, dispersion: Tensor | None = None, *, event_dim: int = 1
    ) -> TorchDistribution:
        """The distribution of the data at a decoder's output.

        Parameters
        ----------
        output
            (..., features × outputs), or (..., channels × outputs, height, width).
        dispersion
            The parameter that is learned beside the decoder, if `initial_dispersion` gave one.
        event_dim
            How many trailing dimensions of ``output`` are one observation.
        """
        parameters: tuple[Tensor, ...] = (output,)
        if self.outputs > 1:
            stacked = output.unflatten(-event_dim, (self.outputs, -1))
            parameters = stacked.unbind(-event_dim - 1)
        if dispersion is not None:
            parameters = (*parameters, dispersion)
        observed: TorchDistribution = self.family(*parameters).to_event(event_dim)
        return observed

    @abstractmethod
    def family(self, *parameters: Tensor) -> TorchDistribution:
        """The distribution of single features, from `outputs` tensors of their shape and the dispersion."""

    @property
    @abstractmethod
    def requirement(self) -> str:
        """What the data must be, and what to do if they are not."""

    @abstractmethod
    def invalid(self, x: Tensor) -> Tensor:
        """Where ``x`` cannot come from this likelihood: a tensor of bools."""

    def check(self, x: Tensor, name: str = "x", columns: Sequence[str] | None = None) -> None:
        """Look at the data once, before a fit.

        Parameters
        ----------
        x
            Data, (n, ...).
        name, columns
            What a sentence calls the data and its columns.

        Raises
        ------
        TypeError
            If ``x`` is no tensor.
        ValueError
            If ``x`` cannot come from this likelihood. The sentence names row, column, value and remedy.

        Examples
        --------
        >>> from pyro_vae.models.likelihoods import Bernoulli
        >>> Bernoulli().check(torch.tensor([[0.0, 1.0], [1.0, 0.5]]))
        Traceback (most recent call last):
        ValueError: x holds 0.5 in row 1, column 1. A Bernoulli likelihood needs 0 or 1: binarize the data...
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is {kind(x)}; give a tensor, torch.as_tensor({name})")
        size = max(1, _VALUES_AT_ONCE // max(1, x[:1].numel()))
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            rows = rows if rows.is_floating_point() else rows.double()
            invalid = self.invalid(rows)
            if not bool(invalid.any()):
                continue
            row, *rest = (int(i) for i in invalid.nonzero()[0])
            place = f"row {start + row}"
            if len(rest) == 1:
                place += f", column {rest[0] if columns is None else brief(columns[rest[0]])}"
            elif rest:
                place += f", position {tuple(rest)}"
            raise ValueError(f"{name} holds {rows[(row, *rest)].item():g} in {place}. {self.requirement}")

    @abstractmethod
    def marginal_output(self, x: Tensor) -> Tensor:
        """The constant decoder output that centres each feature where ``x`` (n, ...) has its mean."""
