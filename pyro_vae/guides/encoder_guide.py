"""What every encoder guide shares: it finds the model's local latents, reads features, opens the plate."""

import copy
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Self

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_vae.guides import scales
from pyro_vae.guides.arguments import require_model
from pyro_vae.guides.heads import ScaleHead, raw_value
from pyro_vae.guides.inputs import encoded
from pyro_vae.guides.precision import at_least_float32
from pyro_vae.guides.sites import (
    LocalSite,
    ObservationPlate,
    call_signature,
    find_local_sites,
    plain_shape,
)

__all__ = ["EncoderGuide"]

REMEMBERED_PLATES = 256
UNKNOWN = "{} knows the model's latents after its first call only"


class EncoderGuide(AutoGuide):
    r"""Base of the amortized guides: q(z|x) from the features that an encoder has for each observation.

    The first call traces the model once, finds the latents in its observation plate, and makes the heads; so
    call the guide (or :meth:`posterior`) once before making an optimizer or wrapping it in
    ``DistributedDataParallel``. ``load_state_dict`` needs no such call: it makes the heads itself.

    A family is one subclass: :meth:`_make_heads` adds what it needs beside ``loc_head`` and ``scale_head``,
    :meth:`_heads` returns its parameters for given features, :meth:`_joint` makes them a distribution over
    all free coordinates of an observation.
    """

    factorizes = False
    """Whether different latents of an observation are independent, so that each has a distribution of its
    own."""

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module,
        *,
        scale: str | scales.ScaleMap = "softplus",
        init_scale: float = 1.0,
    ) -> None:
        require_model(model)
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"encoder must be a torch.nn.Module that takes what the model takes and returns features "
                f"(batch, H), not {type(encoder).__name__}"
            )
        scale_map = scales.get(scale)
        raw_value(scale_map, init_scale)  # raises here, not in the first call
        super().__init__(model)  # type: ignore[no-untyped-call]
        self.scale_map = scale_map
        self.init_scale = init_scale
        self.encoder = encoder
        self.sites: tuple[LocalSite, ...] = ()
        self._plates_seen: dict[Hashable, ObservationPlate] = {}

    # The family: what a subclass says.

    def _make_heads(self, feature_size: int, latent_dim: int) -> None:
        """Make the modules that read the features."""
        self.loc_head = nn.Linear(feature_size, latent_dim)
        self.scale_head = ScaleHead(feature_size, latent_dim, self.scale_map, self.init_scale)

    def _heads(self, features: Tensor) -> dict[str, Tensor]:
        """The parameters of q for each row of features."""
        return {"loc": at_least_float32(self.loc_head(features)), "log_scale": self.scale_head(features)}

    def _joint(self, parameters: dict[str, Tensor]) -> TorchDistribution:
        """q over the free coordinates of all latents, event shape (latent_dim,)."""
        raise NotImplementedError

    def _marginals(self, parameters: dict[str, Tensor]) -> dict[str, TorchDistribution]:
        """q of each latent by itself."""
        (site,) = self.sites
        return {site.name: site.transformed(self._joint(parameters))}

    def _marginal_scale(self, parameters: dict[str, Tensor]) -> Tensor:
        """Standard deviation of each free coordinate."""
        raise NotImplementedError

    # What users call.

    @property
    def latent_dim(self) -> int:
        """Free coordinates per observation, over all latents (0 before the first call)."""
        return sum(site.size for site in self.sites)

    def extra_repr(self) -> str:
        """Part of ``repr``; after the first call with the latents that were found."""
        sizes = {site.name: site.size for site in self.sites}
        found = f", latents={sizes}" if sizes else ""
        return f"scale={self.scale_map!r}, init_scale={self.init_scale:g}{found}"

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every local latent: the guide program. Takes what the model takes."""
        return self.sample_sites(self.local_parameters(*args, **kwargs), *args, **kwargs)

    def local_parameters(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The parameters of q that the encoder has for each observation: name to tensor (batch, …).

        They are all that q knows of an observation. :meth:`sample_sites` and :meth:`posterior_from` take
        them back, changed or not, for example optimized for each observation by itself.
        """
        features = self.encoder(*args, **kwargs)
        self._check_features(features)
        if not self.sites:
            self._set_up(features, args, kwargs)
        linear = self._loc_linear
        assert linear is not None
        return self._heads(features.to(linear.weight.dtype))

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
            if self.factorizes or len(self.sites) == 1:
                return {name: pyro.sample(name, q) for name, q in self._marginals(parameters).items()}
            joint = pyro.sample(
                f"_{self._pyro_name}_latent", self._joint(parameters), infer={"is_auxiliary": True}
            )
            return {site.name: pyro.sample(site.name, site.point(part)) for site, part in self._split(joint)}

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

    # Set-up.

    @property
    def _loc_linear(self) -> nn.Linear | None:
        # Not as an attribute, whose reading is a pyro.module statement.
        linear = self._modules.get("loc_head")
        assert linear is None or isinstance(linear, nn.Linear)
        return linear

    def _check_features(self, features: Any) -> None:
        made_by = f"the encoder ({type(self._modules['encoder']).__name__}) returned"
        if not isinstance(features, Tensor) or not features.is_floating_point():
            what = f"{features.dtype} tensor" if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(
                f"{made_by} a {what}; {type(self).__name__} needs one floating-point tensor of features "
                "(batch, H) and makes the heads for loc and scale itself"
            )
        if features.dim() != 2:
            raise ValueError(
                f"{made_by} features of shape {tuple(features.shape)}; {type(self).__name__} needs "
                "(batch, H), one row per observation: flatten the other dimensions"
            )
        if features.shape[1] == 0:
            raise ValueError(
                f"{made_by} features of shape {tuple(features.shape)}; {type(self).__name__} needs (batch, H) "
                "with at least one feature"
            )
        linear = self._loc_linear
        if linear is not None and features.shape[1] != linear.in_features:
            raise ValueError(
                f"{made_by} {features.shape[1]} features per observation, but the heads of this guide read "
                f"{linear.in_features}"
            )

    def _set_up(self, features: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sites, plate = find_local_sites(self.model, args, kwargs)
        plate.check(features.shape[0])
        latent_dim = sum(site.size for site in sites)
        linear = self._loc_linear
        if linear is None:
            like = next((p for p in self.encoder.parameters() if p.is_floating_point()), features)
            self._add_heads(features.shape[1], latent_dim, like)
        elif linear.out_features != latent_dim:
            raise ValueError(
                f"the loaded state is of a guide for {linear.out_features} latent dimensions, but the "
                f"model has {latent_dim} ({', '.join(site.name for site in sites)})"
            )
        self.sites = sites
        self._plates_seen[features.shape[0], call_signature((args, kwargs))] = plate

    def _add_heads(self, feature_size: int, latent_dim: int, like: Tensor) -> None:
        with torch.inference_mode(False):
            self._make_heads(feature_size, latent_dim)
            for name, module in self.named_children():
                if name != "encoder":
                    # An encoder in half precision does not need heads in half precision.
                    module.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        weight = state_dict.get(prefix + "loc_head.weight")
        if weight is not None and self._loc_linear is None:
            device = next((p.device for p in self.encoder.parameters()), weight.device)
            latent_dim, feature_size = weight.shape
            self._add_heads(feature_size, latent_dim, torch.empty(0, dtype=weight.dtype, device=device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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

    def _split(self, joint: Tensor) -> Iterator[tuple[LocalSite, Tensor]]:
        """The free coordinates of each latent, (…, latent_dim) to (…, size)."""
        return zip(self.sites, joint.split([site.size for site in self.sites], dim=-1), strict=True)

    def _constrain(self, joint: Tensor) -> dict[str, Tensor]:
        return {site.name: site.constrain(part) for site, part in self._split(joint)}


def _check_quantiles(quantiles: Any) -> None:
    try:
        levels = torch.as_tensor(quantiles, dtype=torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"quantiles is {quantiles!r}; give numbers between 0 and 1") from None
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(f"quantiles is {levels.tolist()}; give numbers between 0 and 1")


def _described(sites: tuple[LocalSite, ...]) -> str:
    return ", ".join(f"{site.name} {tuple(site.event_shape)} {site.support}" for site in sites)
