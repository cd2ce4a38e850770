import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pyro_vae import scales
from pyro_vae.models import likelihoods
from pyro_vae.models.likelihoods import (
    Bernoulli,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    base,
)

COUNTS = torch.tensor([0.0, 1.0, 2.0, 4.0])
CASES = {
    "bernoulli": (Bernoulli(), torch.tensor([0.0, 1.0, 1.0, 0.0])),
    "binomial": (Binomial(4), COUNTS),
    "categorical": (Categorical(5), COUNTS),
    "continuous-bernoulli": (ContinuousBernoulli(), torch.tensor([0.0, 0.3, 0.5, 1.0])),
    "negative-binomial": (NegativeBinomial(), COUNTS),
    "negative-binomial predicted": (NegativeBinomial("predicted", 2.0), COUNTS),
    "normal fixed": (Normal(scale=0.5), COUNTS),
    "normal shared": (Normal(scale=scales.get("softplus")), COUNTS),
    "normal feature": (Normal(dispersion="feature"), COUNTS),
    "normal predicted": (Normal(scales.get("softplus-var"), "predicted", 0.3), COUNTS),
    "poisson": (Poisson(), COUNTS),
    "student-t": (StudentT(), COUNTS),
    "student-t predicted": (StudentT(dispersion="predicted", df=2.5), COUNTS),
}
cases = pytest.mark.parametrize(("likelihood", "row"), CASES.values(), ids=CASES)


def test_every_likelihood_is_tested():
    assert set(likelihoods.names()) == {name.split()[0] for name in CASES}


@cases
def test_rows_and_images_have_the_same_density(likelihood, row):
    """Outputs lie along the first event dimension, features of a row or channels of an image alike."""
    k = likelihood.outputs
    output = torch.randn(3, k * 4)
    flat = likelihood.distribution(output, likelihood.initial_dispersion(torch.Size([4])))
    assert (flat.batch_shape, flat.event_shape) == ((3,), (4,))
    assert flat.log_prob(row).shape == (3,)

    image = torch.Size([1, 2, 2])
    shaped = likelihood.distribution(
        output.reshape(3, k, 2, 2), likelihood.initial_dispersion(image), event_dim=3
    )
    assert (shaped.batch_shape, shaped.event_shape) == ((3,), image)
    assert_close(shaped.log_prob(row.reshape(image)), flat.log_prob(row))
    assert shaped.sample(torch.Size([7])).shape == (7, 3, *image)


@cases
def test_leading_dimensions_and_dtype_follow_the_output(likelihood, row):
    dispersion = likelihood.initial_dispersion(torch.Size([4]))
    output = torch.randn(6, 2, 3, likelihood.outputs * 4)
    single = likelihood.distribution(output[4, 1, 2], dispersion)
    batch = likelihood.distribution(output, dispersion)
    assert batch.batch_shape == (6, 2, 3)
    assert_close(batch.log_prob(row)[4, 1, 2], single.log_prob(row))
    low = likelihood.distribution(output.float(), None if dispersion is None else dispersion.float())
    assert low.log_prob(row.float()).dtype == torch.float32


@cases
def test_gradients_are_finite(likelihood, row):
    output = (30 * torch.randn(20, likelihood.outputs * 4)).requires_grad_()
    likelihood.distribution(output, likelihood.initial_dispersion(torch.Size([4]))).log_prob(
        row
    ).sum().backward()
    assert output.grad.isfinite().all()


@cases
def test_good_data_pass_the_check(likelihood, row):
    likelihood.check(row.expand(5, 4))
    likelihood.check(row.reshape(1, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
@cases
def test_the_check_takes_data_of_any_type(likelihood, row, dtype):
    likelihood.check((row > 0).to(dtype).expand(5, 4))


@cases
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_check_names_row_column_and_value(likelihood, row, value):
    x = row.repeat(5, 1)
    x[3, 2] = value
    with pytest.raises(
        ValueError, match=rf"^table holds {value:g} in row 3, column 2\. A .* needs .*: .*\.$"
    ):
        likelihood.check(x, name="table")
    with pytest.raises(ValueError, match=r"in row 3, column 'c'\."):
        likelihood.check(x, columns=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"in row 3, position \(0, 1, 0\)\."):
        likelihood.check(x.reshape(5, 1, 2, 2))


@pytest.mark.parametrize(
    ("likelihood", "value"),
    [
        (Bernoulli(), 0.5),
        (Bernoulli(), 2.0),
        (Binomial(4), 5.0),
        (Binomial(4), -1.0),
        (Binomial(4), 1.5),
        (Categorical(5), 5.0),
        (ContinuousBernoulli(), 1.1),
        (NegativeBinomial(), -1.0),
        (Poisson(), -2.0),
        (Poisson(), 0.5),
    ],
)
def test_the_check_refuses_what_the_likelihood_cannot_give(likelihood, value):
    with pytest.raises(ValueError, match=rf"x holds {value:g} in row 0, column 0"):
        likelihood.check(torch.tensor([[value, 0.0]]))


def test_the_check_counts_rows_beyond_the_first_chunk(monkeypatch):
    monkeypatch.setattr(base, "_VALUES_AT_ONCE", 4)
    x = torch.zeros(7, 2)
    x[5, 1] = -1
    with pytest.raises(ValueError, match="row 5, column 1"):
        Poisson().check(x)


@pytest.mark.parametrize("name", ["logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus"])
@pytest.mark.parametrize("dispersion", ["shared", "feature", "predicted"])
def test_sigma_starts_at_init_scale_and_follows_the_map(name, dispersion):
    scale = scales.get(name)
    likelihood = Normal(scale, dispersion, init_scale=0.3)
    parameter = likelihood.initial_dispersion(torch.Size([4]))
    output = torch.zeros(4 * likelihood.outputs)
    assert_close(likelihood.distribution(output, parameter).stddev, torch.full((4,), 0.3))
    raw = torch.full((4,), 0.7)
    if dispersion == "predicted":
        moved = likelihood.distribution(torch.cat([torch.zeros(4), raw]))
    else:
        moved = likelihood.distribution(output, torch.zeros_like(parameter) + 0.7)
    assert_close(moved.stddev, scale(raw + scale.inv(torch.tensor(0.3))))


@pytest.mark.parametrize(
    ("dispersion", "shape"), [("shared", ()), ("feature", (1, 2, 2)), ("predicted", None)]
)
@pytest.mark.parametrize("kind", [Normal, StudentT, NegativeBinomial])
def test_shape_of_the_learned_dispersion(kind, dispersion, shape):
    parameter = kind(dispersion=dispersion).initial_dispersion(torch.Size([1, 2, 2]))
    assert (parameter is None) == (shape is None)
    assert parameter is None or parameter.shape == shape


def test_negative_binomial_equals_scipy_and_its_moments():
    log_mean, log_r, counts = torch.randn(4), torch.randn(4), torch.arange(4.0)
    ours = NegativeBinomial(init_inverse_dispersion=2.0).distribution(log_mean, log_r)
    mean, r = log_mean.exp().numpy(), 2 * log_r.exp().numpy()
    expected = stats.nbinom(r, r / (r + mean)).logpmf(counts)
    assert_close(ours.log_prob(counts), torch.as_tensor(expected.sum()))
    assert_close(ours.mean, log_mean.exp())
    assert_close(ours.variance, torch.as_tensor(mean + mean**2 / r))


def test_student_t_equals_scipy():
    x, loc = torch.randn(4), torch.randn(4)
    ours = StudentT(scale=0.5, df=3.0).distribution(loc)
    assert_close(ours.log_prob(x), torch.as_tensor(stats.t(3.0, loc, 0.5).logpdf(x).sum()))


def test_categorical_reads_codes():
    logits = torch.randn(3, 2)  # category × feature
    ours = Categorical(3).distribution(logits.flatten())
    expected = logits.log_softmax(0)[torch.tensor([2, 0]), torch.arange(2)].sum()
    assert_close(ours.log_prob(torch.tensor([2.0, 0.0])), expected)


def test_marginal_output_gives_the_means_of_the_data():
    x = torch.randint(0, 4, (4000, 3)).double()
    for likelihood in (Binomial(4), Poisson(), NegativeBinomial(), NegativeBinomial("predicted"), Normal()):
        parameter = likelihood.initial_dispersion(torch.Size([3]))
        fitted = likelihood.distribution(likelihood.marginal_output(x), parameter)
        assert_close(fitted.mean, x.mean(0), atol=1e-3, rtol=0)
    binary = (x > 0).double()
    assert_close(
        Bernoulli().distribution(Bernoulli().marginal_output(binary)).mean, binary.mean(0), atol=1e-3, rtol=0
    )
    shares = Categorical(4).distribution(Categorical(4).marginal_output(x)).base_dist.probs
    assert_close(shares, torch.stack([(x == k).double().mean(0) for k in range(4)], -1), atol=1e-3, rtol=0)


def test_marginal_output_of_a_feature_that_never_changes_is_finite():
    for likelihood in (Bernoulli(), Binomial(4), Poisson(), Categorical(2), ContinuousBernoulli()):
        assert likelihood.marginal_output(torch.zeros(10, 2)).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (Binomial, {"total_count": 0}, "^total_count is 0; give"),
        (Binomial, {"total_count": 2.0}, "^total_count is 2.0; give"),
        (Categorical, {"categories": 1}, "^categories is 1; give"),
        (Normal, {"scale": 0.0}, "^scale is 0.0; give"),
        (Normal, {"init_scale": -1.0}, "^init_scale is -1.0; give"),
        (Normal, {"dispersion": "pixel"}, "^dispersion is 'pixel'; give"),
        (StudentT, {"df": math.inf}, "^df is inf; give"),
        (NegativeBinomial, {"init_inverse_dispersion": 0}, "^init_inverse_dispersion is 0; give"),
    ],
)
def test_wrong_arguments_are_named(kind, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**arguments)


def test_a_scale_that_is_no_map_is_a_type_error():
    with pytest.raises(TypeError, match="neither a number nor a scale map"):
        Normal(scale="softplus")


def test_get_knows_names_and_says_what_is_missing():
    assert likelihoods.get("binomial", total_count=16) == Binomial(16)
    with pytest.raises(ValueError, match=r"Did you mean 'bernoulli'\?"):
        likelihoods.get("bernouli")
    with pytest.raises(ValueError, match="total_count"):
        likelihoods.get("binomial")


def test_likelihoods_are_values():
    assert Normal() == Normal()
    assert hash(Binomial(4)) == hash(Binomial(4))
    with pytest.raises(AttributeError):
        Binomial(4).total_count = 5
