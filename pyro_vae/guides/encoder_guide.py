"""What every encoder guide shares: it reads features, and has heads for the parameters of q."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import kind
from pyro_vae.guides import scales
from pyro_vae.guides.heads import ScaleHead, raw_value
from pyro_vae.guides.latents.finding import Latents, find_latents
from pyro_vae.guides.latents.plates import call_signature
from pyro_vae.guides.latents.shared import Globals, SharedLatents, as_globals
from pyro_vae.guides.local_guide import LocalGuide
from pyro_vae.guides.precision import at_least_float32


class EncoderGuide(LocalGuide):
    r"""Base of the amortized guides: q(z|x) from the features that an encoder has for each observation.

    The first call traces the model once, finds the latents in its observation plate, and makes the heads; so
    call the guide (or :meth:`posterior`) once before making an optimizer or wrapping it in
    ``DistributedDataParallel``. ``load_state_dict`` needs no such call: it makes the heads itself.

    A family is one subclass: :meth:`_make_heads` adds what it needs beside ``loc_head`` and ``scale_head``,
    :meth:`_heads` returns its parameters for given features, :attr:`family` makes them a distribution over
    all free coordinates of an observation.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module,
        *,
        scale: str | scales.ScaleMap = "softplus",
        init_scale: float = 1.0,
        globals: Globals | None = None,  # what they are called
    ) -> None:
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"encoder is {kind(encoder)}; give a torch.nn.Module that takes what the model takes "
                "and returns features (batch, H)"
            )
        scale_map = scales.get(scale)
        raw_value(scale_map, init_scale)  # raises here, not in the first call
        make = None if globals is None else as_globals(globals)
        super().__init__(model)
        self.scale_map = scale_map
        self.init_scale = init_scale
        self.encoder = encoder
        if make is not None:
            self.shared = SharedLatents(make)

    # The family: what a subclass says.

    def _make_heads(self, feature_size: int, latent_dim: int) -> None:
        """Make the modules that read the features."""
        self.loc_head = nn.Linear(feature_size, latent_dim)
        self.scale_head = ScaleHead(feature_size, latent_dim, self.scale_map, self.init_scale)

    def _heads(self, features: Tensor) -> dict[str, Tensor]:
        """The parameters of q for each row of features."""
        return {"loc": at_least_float32(self.loc_head(features)), "log_scale": self.scale_head(features)}

    # What users call.

    def extra_repr(self) -> str:
        """Part of ``repr``; after the first call with the latents that were found."""
        sizes = {site.name: site.size for site in self.sites}
        found = f", latents={sizes}" if sizes else ""
        return f"scale={self.scale_map!r}, init_scale={self.init_scale:g}{found}"

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

    # Set-up.

    @property
    def _loc_linear(self) -> nn.Linear | None:
        # Not as an attribute, whose reading is a pyro.module statement.
        linear = self._modules.get("loc_head")
        assert linear is None or isinstance(linear, nn.Linear)
        return linear

    @property
    def _shared(self) -> Any:
        return self._modules.get("shared")

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int | None) -> Latents:
        found = find_latents(self.model, args, kwargs, rows=rows, plate=self._plate_name)
        return found.without_shared() if self._shared is None else found

    def _sample_shared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        return {} if self._shared is None else self.shared(*args, **kwargs)

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
                f"{made_by} features of shape {tuple(features.shape)}; {type(self).__name__} needs "
                "(batch, H) with at least one feature"
            )
        linear = self._loc_linear
        if linear is not None and features.shape[1] != linear.in_features:
            raise ValueError(
                f"{made_by} {features.shape[1]} features per observation, but the heads of this guide read "
                f"{linear.in_features}"
            )

    def _set_up(self, features: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sites, plate, shared, _ = self._find(args, kwargs, len(features))
        plate.check(features.shape[0])
        if shared:
            self._shared.set_up(self.model, shared, args, kwargs)
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
