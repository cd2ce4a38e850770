"""What every guide of local latents shares: it finds them in the model, opens their plate, speaks Pyro."""

import copy
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any, Self

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_vae.arguments import brief, check_programs, kind
from pyro_vae.guides.families import DIAGONAL, Family, split
from pyro_vae.guides.inputs import encoded
from pyro_vae.guides.latents.finding import Latents, find_latents
from pyro_vae.guides.latents.masks import Masks, hidden_alike, masks_of
from pyro_vae.guides.latents.plates import ObservationPlate, call_signature, plain_shape
from pyro_vae.guides.latents.sites import LocalSite

REMEMBERED_PLATES = 256
UNKNOWN = "{} knows the model's latents after its first call only"


class LocalGuide(AutoGuide):
    """Base of the guides q(z|x) with parameters for each observation, wherever these come from.

    A subclass says where, by :meth:`local_parameters`, and which :attr:`family` they are of.
    """

    family: Family = DIAGONAL
    needs_data = True
    """Whether the guide has no data of its own, to answer for where none are given."""

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

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int | None) -> Latents:
        """The latents of the model in this call."""
        return find_latents(self.model, args, kwargs, rows=rows, plate=self._plate_name).without_shared()

    @property
    def _plate_name(self) -> str | None:
        """The name of the plate of the observations, once it is known."""
        return next((plate.name for plate in self._plates_seen.values()), None)

    def _sample_shared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:  # noqa: ARG002
        """Sample the latents that all observations share, where the guide has any."""
        return {}

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
        draws = self._sample_shared(args, kwargs)
        plate = self._open_plate(rows, args, kwargs)
        masked = [site.name for site in self.sites if site.masked]
        masks = masks_of(self.model, args, kwargs, masked) if masked else {}
        with plate:
            if rows != plate.subsample_size:
                chosen = plate.indices
                parameters = {k: v.index_select(0, chosen.to(v.device)) for k, v in parameters.items()}
            for _ in range(-self.sites[0].observation_dim - 1):
                parameters = {k: v.unsqueeze(1) for k, v in parameters.items()}
            return draws | self._sample_local(parameters, masks)

    def _sample_local(self, parameters: dict[str, Tensor], masks: dict[str, Masks]) -> dict[str, Tensor]:
        """Sample the latents of each observation, inside of their plate."""
        if self._factorizes:
            marginals = self.family.marginals(self.sites, parameters, in_plates=True)
        elif len(self.sites) == 1 and self.sites[0].is_plain:
            marginals = self._marginals(parameters)
        else:
            joint = pyro.sample(
                f"_{self._pyro_name}_latent",
                hidden_alike(self._joint(parameters), [masks.get(site.name) for site in self.sites]),
                infer={"is_auxiliary": True},
            )
            marginals = {site.name: site.point(part) for site, part in split(self.sites, joint)}
        draws = {}
        for site in self.sites:
            q = marginals[site.name]
            with ExitStack() as plates:
                for inner in site.plates:
                    plates.enter_context(pyro.plate(inner.name, inner.size, dim=inner.dim))
                draws[site.name] = pyro.sample(
                    site.name, masks[site.name].apply(q) if site.name in masks else q
                )
        return draws

    def posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution | dict[str, TorchDistribution]:
        """q(z|x) itself, for use outside Pyro: takes whatever ``fit`` takes as data. Raises
        NotImplementedError where the marginals of several latents have no closed form; :meth:`get_posterior`
        has them jointly.

        Returns
        -------
        TorchDistribution or dict
            With one latent its distribution, batch shape (batch,) and the latent's event shape; with several
            a dict from name to marginal distribution.
        """
        return self.posterior_from(encoded(self, args, kwargs))

    def posterior_from(
        self, parameters: dict[str, Tensor]
    ) -> TorchDistribution | dict[str, TorchDistribution]:
        """:meth:`posterior` with given :meth:`local_parameters`."""
        if not self.sites:
            raise RuntimeError(
                f"{UNKNOWN.format(type(self).__name__)}: call the guide, or posterior(x), first"
            )
        if not isinstance(parameters, dict) or "loc" not in parameters:
            raise TypeError(
                f"parameters is {kind(parameters)}; give what local_parameters(x) returns, a dict with "
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
        """The image of the quantiles of each free coordinate: name to (quantiles, batch, event). Raises
        TypeError or ValueError if ``quantiles`` are not numbers between 0 and 1."""
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
            raise RuntimeError(
                f"{UNKNOWN.format(type(self).__name__)}: call the guide, or posterior(x), first"
            )
        if self.master is not None:
            name = self._plate_name
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
            self._remember_plate(signature, args, kwargs, rows)
        return self._plates_seen[signature].open(rows)

    def _remember_plate(
        self, signature: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int
    ) -> None:
        if self._model is None:
            raise RuntimeError(
                "this guide was unpickled, which leaves its model behind, and now meets a batch of a new "
                f"size: load its state_dict into a fresh {type(self).__name__}(model, encoder) instead"
            )
        sites, plate, *_ = self._find(args, kwargs, rows)
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
    return ", ".join(f"{site.name} {_shape(site)} {site.support}" for site in sites)


def _shape(site: LocalSite) -> tuple[int, ...]:
    return (*[plate.size for plate in site.plates], *site.event_shape)
