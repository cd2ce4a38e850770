"""What the diagnostics say in words is what their numbers say."""

import xarray as xr

from pyro_vae.posterior import evidence_reading, gaps_reading, units_reading


def evidence(khat, **more):
    values = {"log_evidence": [-9.0, -9.0], "elbo": [-9.5, -9.5], "khat": khat} | more
    attrs = {"draws": 1000, "latent_dim": 2, "khat_threshold": 0.667}
    return xr.Dataset({name: ("observation", value) for name, value in values.items()}, attrs=attrs)


def test_evidence_is_believed_only_without_bad_khat():
    assert "the weights can be believed" in evidence_reading(evidence([0.1, float("-inf")]))
    assert "can be believed" not in evidence_reading(evidence([0.1, float("nan")]))
    assert "for 50% of 2 observations" in evidence_reading(evidence([0.1, float("inf")]))


def test_evidence_is_not_believed_by_khat_alone():
    """A discrete latent whose right state was drawn once: k̂ 0.05, and one draw that carries the sum."""
    assert "the weights can be believed" in evidence_reading(evidence([0.1, 0.05], ess=[900.0, 25.0]))
    said = evidence_reading(evidence([0.1, 0.05], ess=[900.0, 1.5]))
    assert "can be believed" not in said
    assert "fewer than 25 draws are effective for 50% more" in said


def gaps(family, encoder):
    return xr.Dataset(
        {"approximation_gap": ("observation", [family]), "amortization_gap": ("observation", [encoder])}
    )


def test_gaps_advise_where_the_loss_is():
    assert gaps_reading(gaps(0.0, 0.001)).endswith("nothing to gain")
    assert gaps_reading(gaps(0.1, 0.4)).endswith("it needs a better encoder, or more data")
    assert gaps_reading(gaps(0.4, 0.1)).endswith("try a full covariance or a flow")


def test_units():
    all_active = xr.Dataset({"active": ("latent", [True, True])}, {"latent": ["z[0]", "z[1]"]})
    assert units_reading(all_active) == "2 of 2 latent dimensions are active"
