"""What this room makes opens in plain ArviZ, on both of its lines."""

import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyro_vae.posterior import align_draws, calibrate, compare, diagnose, from_pyro_svi, to_elpd
from tests.posterior.gaussians import GaussianGuide, dense, observations

arviz_plots = pytest.importorskip("arviz_plots")
pytestmark = pytest.mark.arviz


@pytest.fixture(autouse=True)
def _close_figures():
    from matplotlib import pyplot

    yield
    pyplot.close("all")


def pair(factor=0.8):
    model = dense()
    return model, GaussianGuide.exact(model, factor), observations(model, 5)


@pytest.fixture
def tree():
    return from_pyro_svi(*pair(), draws=60)


def test_plot_forest_and_dist(tree):
    coords = {"observation": [0]}
    arviz_plots.plot_forest(tree, coords=coords, combined=True, backend="matplotlib")
    arviz_plots.plot_dist(tree, coords=coords, backend="matplotlib")


def test_plot_forest_of_several_trees_with_unequal_draws(tree):
    other = from_pyro_svi(*pair(0.5), draws=45)
    aligned = align_draws({"a": tree, "b": other})
    assert {dict(each["posterior"].sizes)["draw"] for each in aligned.values()} == {45}
    arviz_plots.plot_forest(aligned, coords={"observation": [0]}, combined=True, backend="matplotlib")


def test_plot_ppc_dist(tree):
    arviz_plots.plot_ppc_dist(tree, kind="kde", backend="matplotlib")


def test_plot_ecdf_pit():
    model, guide, x = pair(1.0)
    pit = calibrate(model, guide, n=100, data=x)["pit"].rename(simulation="draw").expand_dims(chain=[0])
    sbc = xr.Dataset({"z": pit})
    arviz_plots.plot_ecdf_pit(xr.DataTree.from_dict({"prior_sbc": sbc}), backend="matplotlib")


def test_plot_khat_and_compare():
    model, guide, x = pair()
    report = diagnose(model, guide, x, draws=100)
    elpd = to_elpd(report)
    assert elpd.elpd == pytest.approx(float(report["log_evidence"].sum()))
    assert elpd.good_k == report.khat_threshold
    arviz_plots.plot_khat(elpd, threshold=report.khat_threshold, backend="matplotlib")
    table = compare({"good": report, "worse": diagnose(*pair(0.5), draws=100)})
    paired = pd.DataFrame({"elpd": table["elpd_diff"], "se": table["dse"]})
    arviz_plots.plot_compare(paired, relative_scale=False, backend="matplotlib")


def test_zarr(tree, tmp_path):
    pytest.importorskip("zarr")
    tree.to_zarr(tmp_path / "fit.zarr", mode="w", zarr_format=2)
    assert xr.open_datatree(tmp_path / "fit.zarr", engine="zarr").equals(tree)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the newer ArviZ has no InferenceData")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_inference_data(tree):
    import arviz

    data = arviz.from_datatree(tree)
    np.testing.assert_array_equal(data.posterior["z"], tree["posterior"]["z"])


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the newer ArviZ knows trees")
@pytest.mark.filterwarnings("ignore")
def test_functions_of_arviz_before_1_take_a_tree():
    az = pytest.importorskip("arviz")
    tree = from_pyro_svi(*pair(), draws=60)
    assert len(az.summary(tree, kind="stats")) == tree["posterior"]["z"][0, 0].size
    np.testing.assert_allclose(
        az.extract(tree)["z"].mean("sample"), tree["posterior"]["z"].mean(["chain", "draw"])
    )
    az.hdi(tree)
    az.plot_posterior(tree, coords={"observation": [0]})
    az.plot_forest(tree, coords={"observation": [0]})
    assert az.convert_to_inference_data({"a": np.zeros((1, 5))}).posterior["a"].shape == (1, 5)
