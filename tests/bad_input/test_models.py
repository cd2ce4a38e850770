"""Wrong input to models, their parts and their likelihoods."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.models import (
    PPCA,
    VAE,
    Conditional,
    ConvDecoder,
    ConvEncoder,
    HierarchicalVAE,
    MixturePrior,
    MLPDecoder,
    MLPEncoder,
    VampPrior,
    likelihoods,
    reconstruct,
    traverse,
)
from tests.bad_input.cases import Case, check, table

F64 = torch.float64
X = torch.zeros(4, 3, dtype=F64)
POSITIVE = "positive integer"
POSITIVES = "positive integers"


def vae(decoder: Any = None, latent_dim: Any = 2, likelihood: Any = "normal", **options: Any) -> VAE:
    return VAE(nn.Linear(2, 3) if decoder is None else decoder, latent_dim, likelihood, **options)


def conv_decoder(
    latent_dim: Any = 2, channels: Any = (4,), image_shape: Any = (1, 8, 8), **options: Any
) -> Any:
    return ConvDecoder(latent_dim, channels, image_shape, **options)


def hierarchical(latent_dims: Any = (4, 2), **options: Any) -> Any:
    return HierarchicalVAE(
        MLPDecoder(4, [8], 3), MLPDecoder(2, [8], 4, outputs=2), latent_dims, "normal", **options
    )


def ppca(weight: Any = None, loc: Any = None, noise_scale: Any = 1.0) -> PPCA:
    weight = torch.eye(3, 2, dtype=F64) if weight is None else weight
    return PPCA(weight, torch.zeros(3, dtype=F64) if loc is None else loc, noise_scale)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def frozen_vamp() -> Any:
    return VampPrior(2, X)()


class NoDecode:
    """A model that cannot decode."""


VAES = (
    Case("decoder is a function", lambda: vae(torch.sin), TypeError, "decoder", "nn.Module"),
    Case("decoder is a class", lambda: vae(nn.Linear), TypeError, "decoder", "nn.Module"),
    Case("latent_dim 0", lambda: vae(latent_dim=0), ValueError, "latent_dim", POSITIVE),
    Case("latent_dim negative", lambda: vae(latent_dim=-2), ValueError, "latent_dim", POSITIVE),
    Case("latent_dim 2.0", lambda: vae(latent_dim=2.0), ValueError, "latent_dim is 2.0", POSITIVE),
    Case("latent_dim bool", lambda: vae(latent_dim=True), ValueError, "latent_dim is True", POSITIVE),
    Case("latent_dim text", lambda: vae(latent_dim="2"), ValueError, "latent_dim is '2'", POSITIVE),
    Case(
        "latent_dim of another decoder", lambda: vae(latent_dim=5), ValueError, "latent_dim is 5", "decoder"
    ),
    Case("likelihood unknown", lambda: vae(likelihood="gaussian"), ValueError, "'gaussian'", "names are"),
    Case("likelihood near", lambda: vae(likelihood="Bernouli"), ValueError, "'Bernouli'", "'bernoulli'"),
    Case(
        "likelihood needs more", lambda: vae(likelihood="binomial"), ValueError, "'binomial'", "total_count"
    ),
    Case(
        "likelihood is a class",
        lambda: vae(likelihood=likelihoods.Normal),
        TypeError,
        "likelihood",
        "call it",
    ),
    Case(
        "likelihood is a distribution",
        lambda: vae(likelihood=dist.Normal(0, 1)),
        TypeError,
        "likelihood",
        "name",
    ),
    Case("likelihood is a number", lambda: vae(likelihood=1), TypeError, "likelihood", "name"),
    Case(
        "too few outputs",
        lambda: vae(likelihood=likelihoods.Normal(dispersion="predicted")),
        ValueError,
        "(1, 3)",
        "features × 2",
    ),
    Case("scalar decoder", lambda: vae(nn.Flatten(0)), ValueError, "(2,)", "needs (1, features"),
    Case("prior unknown", lambda: vae(prior="gauss"), TypeError, "prior is 'gauss'", "'normal'"),
    Case("prior is a number", lambda: vae(prior=1.0), TypeError, "prior is 1.0", "Pyro distribution"),
    Case("prior is torch's", lambda: vae(prior=torch.distributions.Normal(0, 1)), TypeError, "prior", "Pyro"),
    Case(
        "prior of 3 numbers", lambda: vae(prior=dist.Normal(torch.zeros(3), 1)), ValueError, "prior", "(2,)"
    ),
    Case(
        "prior that learns",
        lambda: vae(prior=dist.Normal(torch.zeros(2, requires_grad=True), 1)),
        ValueError,
        "prior holds parameters",
        "nn.Module",
    ),
    Case("x of 5 columns", lambda: vae()(torch.zeros(4, 5)), ValueError, "(4, 5)", "(n, 3)"),
    Case("x flat", lambda: vae()(torch.zeros(3)), ValueError, "x has shape (3,)", "(n, 3)"),
    Case("x an array", lambda: vae()(np.zeros((4, 3))), TypeError, "x is an ndarray", "torch.as_tensor"),
    Case("x a list", lambda: vae()([[0.0] * 3]), TypeError, "x is a list", "torch.as_tensor"),
    Case(
        "z too long",
        lambda: vae().decode(torch.zeros(4, 5, dtype=F64)),
        ValueError,
        "z has shape (4, 5)",
        "(..., 2)",
    ),
    Case("z a list", lambda: vae().decode([0.0, 0.0]), TypeError, "z is a list", "torch.as_tensor"),  # type: ignore[arg-type]
    Case("0 samples", lambda: vae().sample(0), ValueError, "n is 0", POSITIVE),
    Case("-1 samples", lambda: vae().sample(-1), ValueError, "n is -1", POSITIVE),
    Case("samples as text", lambda: vae().sample("10"), ValueError, "n is '10'", POSITIVE),  # type: ignore[arg-type]
    Case("bias of a plain decoder", lambda: vae().init_output(X), TypeError, "set_output_bias", "define it"),
    Case(
        "bias from other data",
        lambda: vae(MLPDecoder(2, [8], 3)).init_output(torch.zeros(4, 5, dtype=F64)),
        ValueError,
        "x has shape (4, 5)",
        "(n, 3)",
    ),
    Case(
        "bias from no data",
        lambda: vae(MLPDecoder(2, [8], 3)).init_output(X[:0]),
        ValueError,
        "x",
        "at least one",
    ),
)

OTHERS = (
    Case("hierarchy of one", lambda: hierarchical((4,)), ValueError, "latent_dims is (4,)", "two sizes"),
    Case("hierarchy of a number", lambda: hierarchical(4), ValueError, "latent_dims is 4", "two sizes"),
    Case("hierarchy of a wrong layer", lambda: hierarchical((3, 2)), ValueError, "latent_dims[0]=3", "2 × 3"),
    Case(
        "hierarchy of a wrong scale",
        lambda: hierarchical(scale="abs"),
        TypeError,
        "scale is 'abs'",
        "scales.get",
    ),
    Case(
        "conditional of a function",
        lambda: Conditional(torch.sin, 2, "normal"),
        TypeError,
        "network",
        "nn.Module",
    ),  # type: ignore[arg-type]
    Case(
        "conditional of nothing",
        lambda: Conditional(nn.Linear(2, 3), 0, "normal"),
        ValueError,
        "latent_dim",
        POSITIVE,
    ),
    Case("PPCA of a list", lambda: ppca([[1.0], [2.0]]), TypeError, "weight is a list", "tensor"),
    Case("PPCA of whole numbers", lambda: ppca(torch.eye(3, 2).long()), TypeError, "weight", "float"),
    Case("PPCA loc shape", lambda: ppca(loc=torch.zeros(2)), ValueError, "loc (2,)", "(D, q) and (D,)"),
    Case(
        "PPCA noise 0", lambda: ppca(noise_scale=0.0), ValueError, "noise_scale is 0.0", "one positive number"
    ),
    Case(
        "PPCA noise NaN",
        lambda: ppca(noise_scale=np.nan),
        ValueError,
        "noise_scale is nan",
        "positive number",
    ),
    Case(
        "PPCA noise text", lambda: ppca(noise_scale="a"), TypeError, "noise_scale is 'a'", "positive number"
    ),
    Case("PPCA NaN weight", lambda: ppca(torch.eye(3, 2) / 0), ValueError, "weight", "finite"),
    Case("PPCA x", lambda: ppca()(torch.zeros(4, 2)), ValueError, "x has shape (4, 2)", "(n, 3)"),
    Case("PPCA posterior x", lambda: ppca().posterior(torch.zeros(4, 2)), ValueError, "(4, 2)", "(n, 3)"),
    Case("PPCA evidence x", lambda: ppca().log_evidence(torch.zeros(4, 2)), ValueError, "(4, 2)", "(n, 3)"),
    Case("PPCA sample", lambda: ppca().sample(0), ValueError, "n is 0", POSITIVE),
    Case(
        "PPCA rotation",
        lambda: ppca().rotated(torch.ones(2, 2, dtype=F64)),
        ValueError,
        "rotation",
        "orthogonal",
    ),
    Case("PPCA rotation list", lambda: ppca().rotated([[1, 0], [0, 1]]), TypeError, "rotation", "tensor"),  # type: ignore[arg-type]
    Case("exact of flat data", lambda: PPCA.fit_exact(X[:, 0], 1), ValueError, "x has shape (4,)", "(n, D)"),
    Case("exact of one row", lambda: PPCA.fit_exact(X[:1], 1), ValueError, "(1, 3)", "n ≥ 2"),
    Case("exact of all", lambda: PPCA.fit_exact(X, 3), ValueError, "latent_dim is 3", "1…D−1"),
    Case("exact of constant data", lambda: PPCA.fit_exact(X, 1), ValueError, "rank 0", "no variance is left"),
    Case("exact of NaN", lambda: PPCA.fit_exact(X / 0, 1), ValueError, "x", "finite"),
    Case("exact of an array", lambda: PPCA.fit_exact(np.eye(3), 1), TypeError, "x is an ndarray", "tensor"),  # type: ignore[arg-type]
    Case("exact of whole numbers", lambda: PPCA.fit_exact(torch.eye(3).long(), 1), TypeError, "x", "float"),
    Case("mixture of 0", lambda: MixturePrior(2, 0), ValueError, "components is 0", POSITIVE),
    Case("mixture of 1.5", lambda: MixturePrior(2, 1.5), ValueError, "components is 1.5", POSITIVE),  # type: ignore[arg-type]
    Case("mixture of size 0", lambda: MixturePrior(0, 3), ValueError, "latent_dim is 0", POSITIVE),
    Case("mixture scale name", lambda: MixturePrior(2, 3, scale="abs"), TypeError, "'abs'", "scales.get"),  # type: ignore[arg-type]
    Case("VampPrior unset", frozen_vamp, RuntimeError, "no posterior", "guide.posterior"),
    Case("VampPrior of nothing", lambda: VampPrior(2, X[:0]), ValueError, "pseudo_inputs", "at least one"),
    Case(
        "VampPrior of an array", lambda: VampPrior(2, np.zeros((3, 2))), TypeError, "pseudo_inputs", "tensor"
    ),  # type: ignore[arg-type]
    Case("VampPrior of a number", lambda: VampPrior(2, X, 3), TypeError, "posterior", "guide.posterior"),  # type: ignore[arg-type]
    Case(
        "reconstruct another site",
        lambda: reconstruct(vae(), guide, X, site="y"),
        ValueError,
        "site is 'y'",
        "z, x",
    ),
    Case(
        "reconstruct no draws",
        lambda: reconstruct(vae(), guide, X, draws=0),
        ValueError,
        "draws is 0",
        POSITIVE,
    ),
    Case("reconstruct no program", lambda: reconstruct(3, guide, X), TypeError, "model", "Pyro program"),  # type: ignore[arg-type]
    Case("reconstruct no guide", lambda: reconstruct(vae(), "z", X), TypeError, "guide", "Pyro program"),  # type: ignore[arg-type]
    Case(
        "reconstruct categories",
        lambda: reconstruct(vae(nn.Linear(2, 12), likelihood=likelihoods.Categorical(4)), guide, X),
        ValueError,
        "site is 'x'",
        "no mean",
    ),
    Case("traverse nothing", lambda: traverse(NoDecode(), X[0]), TypeError, "model", "decode(z)"),  # type: ignore[arg-type]
    Case(
        "traverse a matrix",
        lambda: traverse(vae(), X),
        ValueError,
        "origin has shape (4, 3)",
        "(latent_dim,)",
    ),
    Case("traverse elsewhere", lambda: traverse(vae(), X[0, :2], dims=[5]), ValueError, "dims is [5]", "0…1"),
    Case("traverse no steps", lambda: traverse(vae(), X[0, :2], steps=0), ValueError, "steps is 0", POSITIVE),
    Case(
        "traverse no span",
        lambda: traverse(vae(), X[0, :2], span=np.nan),
        ValueError,
        "span is nan",
        "positive",
    ),
)

NETWORKS = (
    Case("encoder of size 0", lambda: MLPEncoder(0, [8]), ValueError, "in_features is 0", POSITIVES),
    Case("encoder of text", lambda: MLPEncoder("64", [8]), ValueError, "in_features is '64'", POSITIVES),  # type: ignore[arg-type]
    Case("encoder of bool", lambda: MLPEncoder(True, [8]), ValueError, "in_features is True", POSITIVES),
    Case("encoder of no shape", lambda: MLPEncoder((), [8]), ValueError, "in_features is ()", POSITIVES),
    Case("hidden 0", lambda: MLPEncoder(3, [0]), ValueError, "hidden is [0]", POSITIVES),
    Case("hidden 8.0", lambda: MLPEncoder(3, [8.0]), ValueError, "hidden is [8.0]", POSITIVES),  # type: ignore[list-item]
    Case("hidden a number", lambda: MLPEncoder(3, 8), ValueError, "hidden is 8", "[8]"),  # type: ignore[arg-type]
    Case("activation unknown", lambda: MLPEncoder(3, [8], activation="rellu"), ValueError, "'rellu'", "relu"),
    Case(
        "activation a number",
        lambda: MLPEncoder(3, [8], activation=1),
        TypeError,
        "activation is 1",
        "makes a module",
    ),  # type: ignore[arg-type]
    Case(
        "activation a module",
        lambda: MLPEncoder(3, [8], activation=nn.ReLU()),
        TypeError,
        "activation",
        "makes a module",
    ),
    Case(
        "encoder meets other data",
        lambda: MLPEncoder(3, [8])(torch.zeros(4, 5)),
        ValueError,
        "(4, 5)",
        "(..., 3)",
    ),
    Case("decoder of size 0", lambda: MLPDecoder(0, [8], 3), ValueError, "latent_dim is 0", POSITIVE),
    Case("decoder to 0", lambda: MLPDecoder(2, [8], 0), ValueError, "out_features is 0", POSITIVES),
    Case("decoder outputs 0", lambda: MLPDecoder(2, [8], 3, outputs=0), ValueError, "outputs is 0", POSITIVE),
    Case("decoder hidden -1", lambda: MLPDecoder(2, [-1], 3), ValueError, "hidden is [-1]", POSITIVES),
    Case(
        "decoder bias",
        lambda: MLPDecoder(2, [8], 3).set_output_bias(X),
        ValueError,
        "output",
        "give the 3 numbers",
    ),
    Case(
        "image without channels",
        lambda: ConvEncoder((8, 8), [4], 16),
        ValueError,
        "image_shape is (8, 8)",
        "(channels, ",
    ),
    Case("image of text", lambda: ConvEncoder("abc", [4], 16), ValueError, "image_shape is 'abc'", POSITIVES),
    Case("channels 0", lambda: ConvEncoder((1, 8, 8), [0], 16), ValueError, "channels is [0]", POSITIVES),
    Case("features 0", lambda: ConvEncoder((1, 8, 8), [4], 0), ValueError, "out_features is 0", POSITIVE),
    Case(
        "image of other size",
        lambda: ConvEncoder((1, 8, 8), [4], 16)(torch.zeros(2, 1, 9, 9)),
        ValueError,
        "(2, 1, 9, 9)",
        "(..., 1, 8, 8)",
    ),
    Case("no channels", lambda: conv_decoder(channels=()), ValueError, "channels", "MLPDecoder"),
    Case(
        "decoder channels 1.5",
        lambda: conv_decoder(channels=[1.5]),
        ValueError,
        "channels is [1.5]",
        POSITIVES,
    ),
    Case("conv latent 0", lambda: conv_decoder(0), ValueError, "latent_dim is 0", POSITIVE),
    Case("conv outputs 0", lambda: conv_decoder(outputs=0), ValueError, "outputs is 0", POSITIVE),
    Case(
        "conv image of 2", lambda: conv_decoder(image_shape=(8, 8)), ValueError, "image_shape", "(channels, "
    ),
)

LIKELIHOODS = (
    Case("no such name", lambda: likelihoods.get("poison"), ValueError, "'poison'", "'poisson'"),
    Case("name is a number", lambda: likelihoods.get(3), TypeError, "is 3", "bernoulli"),  # type: ignore[arg-type]
    Case("unhashable name", lambda: likelihoods.get(["normal"]), TypeError, "['normal']", "bernoulli"),  # type: ignore[arg-type]
    Case("unknown argument", lambda: likelihoods.get("normal", sigma=1), ValueError, "sigma", "scale"),
    Case("binomial 0", lambda: likelihoods.Binomial(0), ValueError, "total_count is 0", "1 or more"),
    Case("binomial 16.0", lambda: likelihoods.Binomial(16.0), ValueError, "total_count is 16.0", "integer"),  # type: ignore[arg-type]
    Case("binomial bool", lambda: likelihoods.Binomial(True), ValueError, "total_count is True", "integer"),
    Case("one category", lambda: likelihoods.Categorical(1), ValueError, "categories is 1", "2 or more"),
    Case(
        "categories as text", lambda: likelihoods.Categorical("4"), ValueError, "categories is '4'", "integer"
    ),  # type: ignore[arg-type]
    Case("σ 0", lambda: likelihoods.Normal(scale=0), ValueError, "scale is 0", "positive number"),
    Case("σ NaN", lambda: likelihoods.Normal(scale=np.nan), ValueError, "scale is nan", "positive number"),
    Case("σ bool", lambda: likelihoods.Normal(scale=True), ValueError, "scale is True", "positive number"),
    Case(
        "σ a name",
        lambda: likelihoods.Normal(scale="softplus"),
        TypeError,
        "scale is 'softplus'",
        "scales.get",
    ),  # type: ignore[arg-type]
    Case("dispersion unknown", lambda: likelihoods.Normal(dispersion="all"), ValueError, "'all'", "'shared'"),  # type: ignore[arg-type]
    Case(
        "init_scale text",
        lambda: likelihoods.Normal(init_scale="1"),
        ValueError,
        "init_scale is '1'",
        "positive",
    ),  # type: ignore[arg-type]
    Case(
        "init_scale infinite", lambda: likelihoods.StudentT(init_scale=np.inf), ValueError, "inf", "positive"
    ),
    Case("df 0", lambda: likelihoods.StudentT(df=0), ValueError, "df is 0", "positive number"),
    Case("df text", lambda: likelihoods.StudentT(df="4"), ValueError, "df is '4'", "positive number"),  # type: ignore[arg-type]
    Case(
        "r negative",
        lambda: likelihoods.NegativeBinomial(init_inverse_dispersion=-1),
        ValueError,
        "init_inverse_dispersion is -1",
        "positive number",
    ),
    Case(
        "dispersion None",
        lambda: likelihoods.NegativeBinomial(dispersion=None),  # type: ignore[arg-type]
        ValueError,
        "dispersion is None",
        "'feature'",
    ),
    *(
        Case(
            f"{name} of {value}",
            lambda n=name, a=arguments, v=value: likelihoods.get(n, **a).check(X + v, "data"),
            ValueError,
            f"data holds {value:g} in row 0, column 0",
            remedy,
        )
        for name, arguments, value, remedy in (
            ("bernoulli", {}, 0.5, "binarize"),
            ("bernoulli", {}, np.nan, "binarize"),
            ("binomial", {"total_count": 16}, 17.0, "total_count"),
            ("binomial", {"total_count": 16}, -1.0, "total_count"),
            ("poisson", {}, 0.5, "use Normal"),
            ("poisson", {}, -1.0, "use Normal"),
            ("negative-binomial", {}, np.inf, "use Normal"),
            ("categorical", {"categories": 4}, 4.0, "recode"),
            ("continuous-bernoulli", {}, 255.0, "divide by"),
            ("normal", {}, np.nan, "impute"),
            ("student-t", {}, np.inf, "impute"),
        )
    ),
    Case("check a list", lambda: likelihoods.Normal().check([[1.0]]), TypeError, "x is a list", "tensor"),  # type: ignore[arg-type]
)


@table(*VAES, *OTHERS, *NETWORKS, *LIKELIHOODS)
def test_wrong_input(case: Case) -> None:
    check(case)
