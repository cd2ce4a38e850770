"""What every guide of local latents shares: it finds them in the model, opens their plate, speaks Pyro."""

import copy
from collections.abc import Callable, Hashable
from typing import Any, Self

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_vae.arguments import brief, check_programs
from pyro_vae.guides.families import DIAGONAL, Family, split
from pyro_vae.guides.inputs import encoded
from pyro_vae.guides.sites import (
    LocalSite,
    ObservationPlate,
    call_signature,
    find_local_sites,
    plain_shape,
)

REMEMBERED_PLATES = 256
UNKNOWN = "{} knows the model's latents after its first call only"


class LocalGuide(AutoGuide):
    """Base of the guides q(z|x) with parameters for each observation, wherever these come from.

    A subclass says where, by :meth:`local_parameters`, and which :attr:`family` they are of.
    """

    family: Family = DIAGONAL

    def __init__(self, model: Callable[..., Any]) -> None:
        check_programs(model=model)
        super().__init__(model)  # type: ignore[no-untyped-call]
        self.sites: tuple[LocalSite, ...] = ()
        self._plates_seen: dict[Hashable, ObservationPlate] = {}

    # The family: what a subclass says where it is none of Normals.

    @property
    def _factorizes(self) -> bool:
        """Whether the latents of an observation are independent, so that each has a distribution of its
        own."""
        return self.family.factorizes

    def _joint(self, parameters: dict[str, Tensor]) -> TorchDistribution:
        """q over the free coordinates of all latents, event shape (latent_dim,)."""
        return self.family.joint(parameters)

    def _marginals(self, parameters: dict[str, Tensor]) -> dict[str, TorchDistribution]:
        """q of each latent by itself."""
        return self.family.marginals(self.sites, parameters)

    def _marginal_scale(self, parameters: dict[str, Tensor]) -> Tensor:
        """Standard deviation of each free coordinate."""
        return self.family.scale(parameters)

    # What users call.

    @property
    def latent_dim(self) -> int:
        """Free coordinates per observation, over all latents (0 before the first call)."""
        return sum(site.size for site in self.sites)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every local latent: the guide program. Takes what the model takes."""
        return self.sample_sites(self.local_parameters(*args, **kwargs), *args, **kwargs)

    def local_parameters(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The parameters of q for each observation: name to tensor (batch, …).

        They are all that q knows of an observation. :meth:`sample_sites` and :meth:`posterior_from` take
        them back, changed or not, for example optimized for each observation by itself.
        """
        raise NotImplementedError

    def sample_sites(self, parameters: dict[str, Tensor], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide program with given :meth:`local_parameters` in place of the encoder's.

        Parameters
        ----------
        parameters
            As from :meth:`local_parameters`.
        args, kwargs
            What the model takes in this call; they decide on the observation plate.

        Returns
        -------
        dict
            Name of the latent to its draw, (…, batch, event).
        """
        (rows,) = plain_shape(parameters["loc"].shape[:1])
        plate = self._open_plate(rows, args, kwargs)
        with plate:
            if rows != plate.subsample_size:
                chosen = plate.indices
                parameters = {k: v.index_select(0, chosen.to(v.device)) for k, v in parameters.items()}
            if self._factorizes or len(self.sites) == 1:
                return {name: pyro.sample(name, q) for name, q in self._marginals(parameters).items()}
            joint = pyro.sample(
                f"_{self._pyro_name}_latent", self._joint(parameters), infer={"is_auxiliary": True}
            )
            return {site.name: pyro.sample(site.name, site.point(part)) for site, part in split(self.sites, joint)}

    def posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution | dict[str, TorchDistribution]:
        """q(z|x) itself, for use outside Pyro: takes whatever ``fit`` takes as data.

        Returns
        -------
        TorchDistribution or dict
            With one latent its distribution, batch shape (batch,) and the latent's event shape; with several
            a dict from name to marginal distribution.

        Raises
        ------
        NotImplementedError
            Where the marginals of several latents have no closed form; :meth:`get_posterior` has them
            jointly.
        """
        return self.posterior_from(encoded(self, args, kwargs))

    def posterior_from(
        self, parameters: dict[str, Tensor]
    ) -> TorchDistribution | dict[str, TorchDistribution]:
        """:meth:`posterior` with given :meth:`local_parameters`."""
        if not self.sites:
            raise RuntimeError(f"{UNKNOWN.format(type(self).__name__)}: call the guide, or posterior(x), first")
        if not isinstance(parameters, dict) or "loc" not in parameters:
            raise TypeError(
                f"parameters is a {type(parameters).__name__}; give what local_parameters(x) returns, a dict with "
                "'loc', or the data themselves to posterior(x)"
            )
        marginals = self._marginals(parameters)
        return marginals[self.sites[0].name] if len(self.sites) == 1 else marginals

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """q over the free coordinates of all latents together, batch shape (batch,), event shape
        (latent_dim,): what Pyro's autoguides call the posterior."""
        return self._joint(encoded(self, args, kwargs))

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The image of the median of each free coordinate: name to (batch, event)."""
        parameters = encoded(self, args, kwargs)
        self._marginal_scale(parameters)  # raises where the location is not the median
        return self._constrain(parameters["loc"])

    @torch.no_grad()
    def quantiles(self, quantiles: Tensor | list[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The image of the quantiles of each free coordinate: name to (quantiles, batch, event).

        Raises
        ------
        TypeError, ValueError
            If ``quantiles`` are not numbers between 0 and 1.
        """
        _check_quantiles(quantiles)
        parameters = encoded(self, args, kwargs)
        loc, scale = parameters["loc"], self._marginal_scale(parameters)
        levels = torch.as_tensor(quantiles, dtype=loc.dtype, device=loc.device).reshape(-1, 1, 1)
        return self._constrain(loc + scale * torch.special.ndtri(levels))

    # Pickles and copies.

    def __getstate__(self) -> dict[str, Any]:
        # AutoGuide's own clears these two on the original as well, which needs its model for new batch sizes.
        state: dict[str, Any] = super(AutoGuide, self).__getstate__()
        return {**state, "_model": None, "master": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        new._model = self._model
        return new

    # Plates and shapes.

    def _open_plate(self, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> pyro.plate:
        if not self.sites:
            raise RuntimeError(f"{UNKNOWN.format(type(self).__name__)}: call the guide, or posterior(x), first")
        (name,) = {plate.name for plate in self._plates_seen.values()}
        if self.master is not None:
            plate: pyro.plate = self._create_plates(*args, **kwargs)[name]  # type: ignore[no-untyped-call]
            if rows not in (plate.subsample_size, plate.size):
                raise ValueError(
                    f"the encoder returned {rows} rows of features, but the guide list opened plate '{name}' "
                    f"for {plate.subsample_size} observations; give the list the plate of each call: "
                    f"AutoGuideList(model, create_plates=lambda x: pyro.plate('{name}', len(x), dim=-1))"
                )
            return plate
        signature = (rows, call_signature((args, kwargs)))
        if signature not in self._plates_seen:
            # A batch of another size may be the whole (len(x)) or a part of it: only the model knows.
            self._remember_plate(signature, args, kwargs)
        return self._plates_seen[signature].open(rows)

    def _remember_plate(self, signature: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._model is None:
            raise RuntimeError(
                "this guide was unpickled, which leaves its model behind, and now meets a batch of a new "
                f"size: load its state_dict into a fresh {type(self).__name__}(model, encoder) instead"
            )
        sites, plate = find_local_sites(self.model, args, kwargs)
        if _described(sites) != _described(self.sites):
            raise ValueError(
                f"the model has latents {_described(sites)} in this call, but the guide was set up for "
                f"{_described(self.sites)}: use one guide for each structure"
            )
        if len(self._plates_seen) >= REMEMBERED_PLATES:
            self._plates_seen.clear()
        self._plates_seen[signature] = plate

    def _constrain(self, joint: Tensor) -> dict[str, Tensor]:
        return {site.name: site.constrain(part) for site, part in split(self.sites, joint)}


def _check_quantiles(quantiles: Any) -> None:
    try:
        levels = torch.as_tensor(quantiles, dtype=torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"quantiles is {brief(quantiles)}; give numbers between 0 and 1") from None
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(f"quantiles is {brief(levels.tolist())}; give numbers between 0 and 1")


def _described(sites: tuple[LocalSite, ...]) -> str:
    return ", ".join(f"{site.name} {tuple(site.event_shape)} {site.support}" for site in sites)
