"""Comparisons decide what the data decide, and nothing else."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats

from pyro_vae.posterior import answer, compare, diagnose, refine, repair
from tests.posterior.gaussians import GaussianGuide, LinearGaussian, dense, observations

pytestmark = pytest.mark.arviz


def guides(seeds=4, n=300, gaps=(0.0, 0.5), noise=0.2, level=-100.0):
    """Log evidence of guides that share what is hard about an observation.

    The fits of each guide are spread evenly over ±``noise``, of every second guide in reverse: whether a
    difference between guides is decided is then no matter of luck.
    """
    rng = np.random.default_rng(0)
    hard = rng.normal(level, 10, size=(1, n))
    spread = np.linspace(-noise, noise, seeds)[:, None]
    shift = [spread if i % 2 else -spread for i in range(len(gaps))]
    return {
        name: {"log_evidence": hard - gap + shift[i] + rng.normal(0, noise, (seeds, n))}
        for i, (name, gap) in enumerate(zip("abcdefgh", gaps, strict=False))
    }


def test_columns_against_their_formulas():
    given = guides(gaps=(0.3, 0.0, 1.0))
    table = compare(given)
    columns = ["rank", "elpd", "se", "elpd_diff", "dse", "weight", "p_worse"]
    assert list(table.columns) == [*columns, "diff", "diff_low", "diff_high", "decided", "seeds"]
    assert list(table.index) == ["b", "a", "c"]
    assert list(table["rank"]) == [0, 1, 2]
    mean = {name: value["log_evidence"].mean(0) for name, value in given.items()}
    for name, row in table.iterrows():
        difference = mean[name] - mean["b"]
        assert row["elpd"] == pytest.approx(mean[name].sum())
        assert row["se"] == pytest.approx(np.sqrt(300) * mean[name].std(ddof=1))
        assert row["elpd_diff"] == pytest.approx(difference.sum())
        assert row["dse"] == pytest.approx(np.sqrt(300) * difference.std(), rel=0.01)
        assert row["diff"] == pytest.approx(difference.mean())
    assert table["weight"].sum() == pytest.approx(1)
    assert table["p_worse"].isna().tolist() == [True, False, False]


def test_interval_over_seeds_is_students_on_paired_differences_adjusted_for_all_pairs():
    given = guides(gaps=(0.0, 0.3, 1.0), seeds=5)
    table = compare(given)
    best, name = table.index[0], table.index[2]
    per_seed = (given[name]["log_evidence"] - given[best]["log_evidence"]).mean(1)
    level = 1 - 0.05 / 3  # three pairs
    low, high = stats.t.interval(level, df=4, loc=per_seed.mean(), scale=stats.sem(per_seed))
    assert tuple(table.loc[name, ["diff_low", "diff_high"]]) == pytest.approx((low, high))
    assert table.loc[best, ["diff_low", "diff_high"]].isna().all()
    assert (table["seeds"] == 5).all()


def test_one_seed_gives_an_interval_over_observations_and_the_answer_says_so():
    given = {name: {"log_evidence": value["log_evidence"][0]} for name, value in guides().items()}
    table = compare(given)
    difference = given["b"]["log_evidence"] - given["a"]["log_evidence"]
    low, high = stats.t.interval(0.95, 299, difference.mean(), stats.sem(difference))
    assert tuple(table.loc["b", ["diff_low", "diff_high"]]) == pytest.approx((low, high))
    assert "over observations" in answer(table)
    assert "about these fits and not about the guides" in answer(table)


def test_what_varies_more_between_seeds_than_between_guides_is_not_decided():
    """However many observations there are: each alone would say that the difference is sure."""
    table = compare(guides(gaps=(0.0, 0.1), noise=0.3, n=5000, seeds=3))
    assert not table["decided"].any()
    assert table["p_worse"].iloc[1] > 0.99
    assert answer(table).startswith("The data do not decide between")


def test_a_clear_difference_is_decided():
    table = compare(guides(gaps=(2.0, 0.0), noise=0.1))
    assert table["decided"].all()
    by = table.loc["a", "diff"]
    assert by == pytest.approx(-2, abs=5 * 0.1 * (2 / 1200) ** 0.5)  # 4 fits of each, 300 observations
    assert answer(table).startswith(f"b has the higher log evidence: it beats a by {-by:.2f} nats")


def test_the_same_guide_twice_decides_nothing():
    given = guides()
    table = compare({"one": given["a"], "two": given["a"]})
    assert not table["decided"].any()
    assert table["elpd_diff"].tolist() == [0, 0]


def test_a_permuted_copy_decides_nothing_and_a_worse_guide_is_found():
    """Latents in another order are the same guide: the numbers differ by rounding and noise only."""
    model = dense()
    order = torch.tensor([2, 0, 1])
    turned = LinearGaussian(model.weight[:, order])
    x = observations(model, 60)

    def fits(pair, factor):
        return [diagnose(pair, GaussianGuide.exact(pair, factor), x, 200, seed=s) for s in range(3)]

    table = compare({"guide": fits(model, 1.0), "permuted": fits(turned, 1.0)})
    assert not table["decided"].any()
    # Nothing is decided in 95 of 100 cases. What the evidence varies by: 1 / ESS = 0.9 × 200, as a Gaussian
    # that is a tenth too narrow has it in three dimensions; two guides, 3 fits of 60 observations each.
    table = compare({"guide": fits(model, 0.9), "permuted": fits(turned, 0.9)})
    assert abs(table["diff"].iloc[1]) < 5 * (2 * (1 / 0.9 - 1) / 200 / 180) ** 0.5
    table = compare({"right": fits(model, 1.0), "narrow": fits(model, 0.5)}, shared_model=True)
    assert table.index[0] == "right"
    assert table["decided"].all()


def test_stacking_beyond_745_nats():
    """exp(−2000) is zero for every guide, and the weights would come out equal without a word."""
    near, far = (compare(guides(gaps=(0.0, 1.0), noise=0.01, level=level)) for level in (-20.0, -2000.0))
    np.testing.assert_allclose(far["weight"], near["weight"], atol=1e-6)
    assert far["weight"].iloc[0] > 0.9
    np.testing.assert_allclose(far["elpd_diff"], near["elpd_diff"])


def test_a_shared_model_is_compared_by_the_elbo_without_weights():
    """Its evidence is one number, and estimates of it differ by their error only."""
    rng = np.random.default_rng(0)
    evidence = rng.normal(-100, 1, 200)
    given = {
        name: {"log_evidence": evidence + rng.normal(0, 0.01, 200), "elbo": evidence - gap}
        for name, gap in (("wide", 0.4), ("good", 0.1))
    }
    table = compare(given, shared_model=True)
    assert table.index[0] == "good"
    assert "weight" not in table
    assert table["diff"].iloc[1] == pytest.approx(-0.3)
    assert "ELBO" in answer(table)


def test_all_forms_of_input_agree():
    given = guides()
    as_sets = {
        name: xr.Dataset({"log_evidence": (("observation", "seed"), value["log_evidence"].T)})
        for name, value in given.items()
    }
    as_lists = {
        name: [{"log_evidence": list(row)} for row in value["log_evidence"]] for name, value in given.items()
    }
    expected = compare(given)
    pd.testing.assert_frame_equal(compare(as_sets), expected)
    pd.testing.assert_frame_equal(compare(as_lists), expected)


def test_answer_needs_only_the_columns(tmp_path):
    """So that it can be read back from a file."""
    table = compare(guides(gaps=(0.0, 0.1, 3.0)))
    table.to_csv(tmp_path / "compare.csv")
    assert answer(pd.read_csv(tmp_path / "compare.csv", index_col="guide")) == answer(table)


def test_answer_of_a_partly_decided_comparison_names_both_parts():
    said = answer(compare(guides(gaps=(0.0, 0.01, 3.0), noise=0.1)))
    first, second = said.split(". B")
    assert "it beats c by" in first
    assert "the data do not decide" in second
    assert "contains zero" in second


def judged(khat, seed=0, gap=0.0, seeds=3, n=200, **more):
    """Diagnostics of one guide with this k̂ for each observation; its fits are spread as those of
    :func:`guides`, by the parity of the seed."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(-100, 10, size=(1, n))
    spread = (-1) ** seed * np.linspace(-0.03, 0.03, seeds)[:, None]
    evidence = hard - gap + spread + rng.normal(0, 0.1, (seeds, n))
    khat = np.broadcast_to(np.asarray(khat, dtype=float), (seeds, n))
    return {"log_evidence": evidence, "khat": khat, "draws": 1000} | more


def share_bad(share, n=200):
    return np.where(np.arange(n) < share * n, 0.9, 0.2)


class TestBelief:
    """Two guides are compared by evidence only where that can be believed."""

    def test_bad_khat_of_one_guide_leaves_bounds_and_no_winner(self):
        table = compare({"narrow": judged(share_bad(0.5), gap=0.4), "exact": judged(0.1, seed=1)})
        assert list(table.index) == ["narrow", "exact"]  # as given: no order
        assert not table["decided"].any()
        for column in ("rank", "weight", "p_worse", "elpd_diff", "diff", "diff_low", "diff_high"):
            assert table[column].isna().all()
        assert np.isfinite(table["elpd"]).all()
        assert table["unbelieved"].tolist() == [0.5, 0.0]
        said = answer(table)
        assert said.startswith("No guide is ahead: the weights of 50% of the observations of narrow")
        assert "ahead of" not in said
        assert "beats" not in said
        assert "repair" in said
        assert "refine" in said

    def test_good_khat_decides(self):
        table = compare({"worse": judged(0.2, gap=0.4), "exact": judged(0.1, seed=1)})
        assert table.index[0] == "exact"
        assert table["decided"].all()
        assert table["unbelieved"].tolist() == [0, 0]

    def test_five_per_cent_is_where_it_ends(self):
        for share, decided in ((0.05, True), (0.06, False)):
            table = compare({"a": judged(share_bad(share), gap=0.4), "b": judged(0.1, seed=1)})
            assert table["decided"].all() == decided

    def test_few_effective_draws_are_no_belief_either(self):
        table = compare({"a": judged(0.1, gap=0.4, ess=np.full((3, 200), 2.0)), "b": judged(0.1, seed=1)})
        assert not table["decided"].any()

    def test_what_hangs_on_the_few_that_are_not_believed_is_not_decided(self):
        few = judged(share_bad(0.04))
        few["log_evidence"] = few["log_evidence"] - np.where(share_bad(0.04) > 0.5, 30.0, 0.0)
        table = compare({"few": few, "other": judged(0.1, seed=1)})
        assert table["diff"].iloc[1] < -1
        assert not table["decided"].any()
        without = compare({"few": few | {"khat": np.zeros((3, 200))}, "other": judged(0.1, seed=1)})
        assert without["decided"].all()

    def test_a_shared_model_needs_no_weights(self):
        a, b = (judged(0.9, seed=s) for s in (0, 1))
        a, b = (each | {"elbo": each["log_evidence"] - gap} for each, gap in ((a, 1.0), (b, 2.0)))
        table = compare({"a": a, "b": b}, shared_model=True)
        assert table.index[0] == "a"
        assert table["decided"].all()

    def test_the_answer_survives_a_file(self, tmp_path):
        table = compare({"narrow": judged(share_bad(0.5)), "exact": judged(0.1, seed=1)})
        table.to_csv(tmp_path / "compare.csv")
        assert answer(pd.read_csv(tmp_path / "compare.csv", index_col="guide")) == answer(table)

    def test_without_khat_the_answer_says_that_belief_is_not_known(self):
        assert "No k̂ was given" in answer(compare(guides()))
        assert "No k̂ was given" not in answer(compare({"a": judged(0.1), "b": judged(0.1, seed=1)}))

    def test_how_many_fits_it_speaks_over(self):
        """Three fits without a failure leave a rate of 63% possible: 0.37³ = 5%."""
        said = answer(compare({"a": judged(0.1, gap=0.4), "b": judged(0.1, seed=1)}))
        assert "With 3 fits of each guide, a fault that strikes up to 63% of its fits can go unseen" in said

    def test_a_narrow_guide_of_the_true_model_does_not_lose_to_a_worse_model(self):
        """The truth is ahead by 0.06 nats; raw evidence said that it is behind by 0.41."""
        model, worse, x = linear(0.7), linear(0.75), observations(linear(0.7), 60)
        arms = {
            "truth": (model, GaussianGuide.exact(model, 0.5)),
            "worse": (worse, GaussianGuide.exact(worse)),
        }
        table = compare(
            {name: [diagnose(*arm, x, 400, seed=s) for s in range(2)] for name, arm in arms.items()}
        )
        assert not table["decided"].any()
        assert table["weight"].isna().all()
        repaired = {name: repair(*arm, x, 400, steps=("resample",)) for name, arm in arms.items()}
        truth = (worse.log_evidence(x) - model.log_evidence(x)).mean().item()
        after = compare(repaired)
        assert after["unbelieved"].max() <= 0.05
        assert after.loc["worse", "diff"] - after.loc["truth", "diff"] == pytest.approx(truth, abs=0.03)

    def test_refined_and_repaired_evidence_is_compared_as_it_comes(self):
        """Guides half as wide as they should be, of a model and of a worse one: all three ways agree with
        the exact difference, and believe it."""
        model, worse, x = linear(0.7), linear(0.9), observations(linear(0.7), 60)
        arms = {name: (m, GaussianGuide.exact(m, 0.5)) for name, m in (("truth", model), ("worse", worse))}
        truth = (worse.log_evidence(x) - model.log_evidence(x)).mean().item()
        for way in (
            lambda *pair: refine(*pair, x),
            lambda *pair: repair(*pair, x, 400, steps=("resample",)),
            lambda *pair: diagnose(*pair, x, 400, refined=True),
        ):
            table = compare({name: way(*arm) for name, arm in arms.items()})
            assert table["unbelieved"].max() == 0
            assert table.index[0] == "truth"
            assert table.loc["worse", "diff"] == pytest.approx(truth, abs=0.03)
            assert table.loc["worse", "decided"]

    def test_two_rotations_of_one_model_are_one_model(self):
        """p(x) is the same; a mean-field guide loses 0.1 nats by its weights alone."""
        model = linear(0.5)
        turned = LinearGaussian(model.weight @ torch.linalg.qr(torch.randn(6, 6))[0], 0.5)
        x = observations(model, 60)
        pairs = {
            "full": (model, GaussianGuide.exact(model)),
            "field": (turned, GaussianGuide.mean_field(turned)),
        }
        table = compare(
            {name: [diagnose(*pair, x, 300, seed=s) for s in range(3)] for name, pair in pairs.items()}
        )
        assert not table["decided"].any()


def fits_of(pair, x, seeds):
    return [diagnose(*pair, x, 300, seed=s) for s in range(seeds)]


def linear(noise):
    weight = 0.7 * torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
    return LinearGaussian(weight, noise)


@pytest.mark.parametrize(
    ("diagnostics", "message"),
    [
        ({"a": {"log_evidence": [1.0, 2.0]}}, "at least two"),
        ({"a": {"log_evidence": [1.0, 2.0]}, "b": {"log_evidence": [1.0]}}, "a: 1 × 2, b: 1 × 1"),
        ({"a": {"log_evidence": [1.0]}, "b": {"log_evidence": [1.0]}}, "one observation"),
        (
            {"a": {"log_evidence": [1.0, np.nan]}, "b": {"log_evidence": [1.0, 2.0]}},
            "'a' is nan for observation 1",
        ),
        ({"a": {"log_evidence": [1.0, -np.inf]}, "b": {"log_evidence": [1.0, 2.0]}}, "1 of 2 observations"),
        ({"a": {"elpd": [1.0, 2.0]}, "b": {"log_evidence": [1.0, 2.0]}}, "no 'log_evidence'; they have"),
        ({"a": [], "b": {"log_evidence": [1.0, 2.0]}}, "'a' is empty"),
        ({"a": {"log_evidence": np.zeros((2, 2, 2))}, "b": {"log_evidence": [1.0, 2.0]}}, "must have shape"),
    ],
)
def test_wrong_input_is_named(diagnostics, message):
    with pytest.raises(ValueError, match=message):
        compare(diagnostics)
