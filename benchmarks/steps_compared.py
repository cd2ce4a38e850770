"""The same VAE's step by everybody who is compared: ours, Pyro's SVI, hand-written torch, pythae, NumPyro."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

BATCH, STEPS = 128, 50
DEVICE = os.environ.get("STEP_TIME_DEVICE", "cpu")
"""What this worker runs on, as its parent says."""

MATMUL = os.environ.get("STEP_TIME_MATMUL", "highest")
"""How exactly matrices are multiplied, in the words of ``torch.set_float32_matmul_precision``."""


def rounds(epoch: Callable[[], object]) -> None:
    """Runs an epoch for every line that the parent sends, and answers with milliseconds per step."""
    epoch()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        epoch()
        print((time.perf_counter() - started) / STEPS * 1e3, flush=True)


def torch_data(features: int) -> Any:
    import torch

    torch.manual_seed(0)
    return (torch.rand(BATCH * STEPS, features) < 0.3).float().to(DEVICE)


def our_pair(features: int, hidden: int, latent: int) -> tuple[Any, Any]:
    from torch import nn

    import pyro_vae

    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features))
    model = pyro_vae.models.VAE(decoder, latent, "bernoulli")
    encoder = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
    return model, pyro_vae.guides.AmortizedNormal(model, encoder, scale="logvar")


def run_ours(engine: str, features: int, hidden: int, latent: int) -> None:
    import pyro_vae

    model, guide = our_pair(features, hidden, latent)
    clock = [0.0]

    def at_the_end_of_an_epoch(record: Any) -> None:
        if record.epoch < 2:  # built and warm
            return
        if record.epoch == 2:
            print("ready", flush=True)
        else:
            print((time.perf_counter() - clock[0]) / STEPS * 1e3, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        clock[0] = time.perf_counter()

    pyro_vae.fit(
        model,
        guide,
        torch_data(features),
        epochs=10**6,
        batch_size=BATCH,
        engine=engine,
        device=DEVICE,
        progress=False,
        callbacks=[at_the_end_of_an_epoch],
    )


def shuffled_epochs(features: int, step: Callable[[Any], object]) -> None:
    """Rounds of a step that takes a batch of torch."""
    import torch

    x = torch_data(features)

    def epoch() -> None:
        for rows in torch.randperm(len(x), device=DEVICE).split(BATCH):
            step(x[rows])

    rounds(epoch)


def pyro_step(elbo: str, features: int, hidden: int, latent: int) -> Callable[[Any], object]:
    """Pyro's own step, of our pair."""
    import pyro
    from pyro.infer import SVI

    model, guide = our_pair(features, hidden, latent)
    guide(torch_data(features)[:BATCH].cpu())  # makes its lazy parameters
    model.to(DEVICE)
    guide.to(DEVICE)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), getattr(pyro.infer, elbo)())
    step: Callable[[Any], object] = svi.step
    return step


def run_pyro(elbo: str, *sizes: int) -> None:
    shuffled_epochs(sizes[0], pyro_step(elbo, *sizes))


def hand_written_step(mode: str, features: int, hidden: int, latent: int) -> Callable[[Any], object]:
    """The same VAE in torch alone."""
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
            self.loc, self.logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
            self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features))

        def forward(self, x: Any) -> Any:
            h = self.encoder(x)
            loc, logvar = self.loc(h), self.logvar(h)
            z = loc + (0.5 * logvar).exp() * torch.randn_like(loc)
            reconstruction = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
            return reconstruction - 0.5 * (1 + logvar - loc.square() - logvar.exp()).sum()

    module = ByHand().to(DEVICE)
    modes = {"compiled": "default", "reduce-overhead": "reduce-overhead"}
    loss_of = torch.compile(module, mode=modes[mode]) if mode in modes else module
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def step(x: Any) -> None:
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def run_hand(mode: str, *sizes: int) -> None:
    shuffled_epochs(sizes[0], hand_written_step(mode, *sizes))


def run_pythae(_: str, features: int, hidden: int, latent: int) -> None:
    """Its own trainer: an epoch of ``train_step``."""
    import contextlib
    import os
    import tempfile

    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from torch import nn

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
            self.loc, self.logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)

        def forward(self, x: Any) -> Any:
            h = self.body(x)
            return ModelOutput(embedding=self.loc(h), log_covariance=self.logvar(h))

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            layers = nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features), nn.Sigmoid()
            self.body = nn.Sequential(*layers)

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.body(z))

    x = torch_data(features)
    config = VAEConfig(input_dim=(features,), latent_dim=latent, reconstruction_loss="bce")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        trainer = BaseTrainer(
            VAE(config, Encoder(), Decoder()),
            BaseDataset(x, x[:, 0]),
            training_config=BaseTrainerConfig(
                output_dir=tempfile.mkdtemp(),
                per_device_train_batch_size=BATCH,
                learning_rate=1e-3,
                no_cuda=DEVICE == "cpu",
            ),
        )
        trainer.prepare_training()
        trainer.callback_handler.callbacks.clear()  # its progress bars
    rounds(lambda: trainer.train_step(1))


def numpyro_svi(features: int, hidden: int, latent: int) -> tuple[Any, Any]:
    """The same VAE in NumPyro, and its data."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax
    from numpyro.infer import SVI, TraceMeanField_ELBO

    scale = stax.serial(stax.Dense(latent), stax.elementwise(lambda raw: jnp.exp(0.5 * raw)))
    heads = (stax.FanOut(2), stax.parallel(stax.Dense(latent), scale))
    encoder = stax.serial(stax.Dense(hidden), stax.Relu, *heads)
    decoder = stax.serial(stax.Dense(hidden), stax.Relu, stax.Dense(features))

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), latent))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([latent]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        loc, scale = numpyro.module("encoder", encoder, (len(x), features))(x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    x = (jax.random.uniform(jax.random.PRNGKey(0), (BATCH * STEPS, features)) < 0.3).astype(jnp.float32)
    return SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO()), x


def run_numpyro(mode: str, features: int, hidden: int, latent: int) -> None:
    import jax

    svi, x = numpyro_svi(features, hidden, latent)
    key = jax.random.PRNGKey(0)
    state = svi.init(key, x[:BATCH])
    update = jax.jit(svi.update, donate_argnums=0)
    scan = jax.jit(lambda s, rows: jax.lax.scan(lambda s, i: svi.update(s, x[i]), s, rows))
    shuffled = jax.jit(lambda key: jax.random.permutation(key, len(x)).reshape(STEPS, BATCH))

    def epoch() -> None:
        nonlocal state, key
        key, now = jax.random.split(key)
        if mode == "scan":
            state, losses = scan(state, shuffled(now))
            float(losses.sum())
        else:
            for rows in shuffled(now):
                state, loss = update(state, x[rows])
                float(loss)

    rounds(epoch)


def run_numpyro_seeds(seeds: int, epochs: int, features: int, hidden: int, latent: int) -> None:
    """Many seeds at once: the scan of an epoch, vectorized over them."""
    import jax

    svi, x = numpyro_svi(features, hidden, latent)
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    states = jax.vmap(lambda key: svi.init(key, x[:BATCH]))(keys)

    @jax.jit
    @jax.vmap
    def epoch(state: Any, key: Any) -> Any:
        rows = jax.random.permutation(key, len(x)).reshape(STEPS, BATCH)
        return jax.lax.scan(lambda s, i: svi.update(s, x[i]), state, rows)

    for i in range(epochs):
        states, losses = epoch(states, jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys))
        losses.sum(1).tolist()


VARIANTS: dict[str, tuple[Callable[..., None], str]] = {
    "hand-written, compiled": (run_hand, "compiled"),
    "hand-written, reduce-overhead": (run_hand, "reduce-overhead"),
    "hand-written, eager": (run_hand, "eager"),
    "pyro-vae, eager": (run_ours, "eager"),
    "pyro-vae, captured": (run_ours, "captured"),
    "pyro-vae, native": (run_ours, "native"),
    "pyro-vae, CUDA graph": (run_ours, "cuda-graph"),
    "Pyro SVI, Trace_ELBO": (run_pyro, "Trace_ELBO"),
    "Pyro SVI, TraceMeanField_ELBO": (run_pyro, "TraceMeanField_ELBO"),
    "pythae, BaseTrainer": (run_pythae, ""),
    "NumPyro, jit(update)": (run_numpyro, "update"),
    "NumPyro, lax.scan": (run_numpyro, "scan"),
}
