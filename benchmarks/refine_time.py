"""What refinement costs, beside the bare matrix products of the decoder that it needs.

    python benchmarks/refine_time.py [--images 10000] [--device cuda] [--mnist DIR]

A small VAE is trained on the digits of scikit-learn, the held-out ones are refined, and refined evidence is
drawn for nine fits; with --mnist (IDX files) so many --images are refined under the 784-400-20 model,
too. CPU seconds of one thread, medians of three.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import pyro_vae
from pyro_vae import data
from pyro_vae.guides import AmortizedNormal
from pyro_vae.guides.refining import density
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods

ROUNDS = 3


def seconds(run: Callable[[], object], device: str) -> float:
    """CPU seconds; on a GPU those of the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter

    def once() -> float:
        start = clock()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    return statistics.median(once() for _ in range(ROUNDS))


def pair(x: torch.Tensor, likelihood: object, hidden: list[int], latent_dim: int, device: str) -> tuple:
    torch.manual_seed(0)
    outputs = x.shape[1]
    model = VAE(MLPDecoder(latent_dim, hidden[::-1], outputs), latent_dim, likelihood).to(device)
    return model, AmortizedNormal(model, MLPEncoder(outputs, hidden)).to(device)


class Counted:
    """How many rows go through the model."""

    def __enter__(self) -> "Counted":
        self.rows, self.original = {True: 0, False: 0}, density.LocalDensity._batch

        def batch(own: object, free: torch.Tensor, *rest: object, gradient: bool) -> object:
            self.rows[gradient] += len(free)
            return self.original(own, free, *rest, gradient=gradient)

        density.LocalDensity._batch = batch
        return self

    def __exit__(self, *_: object) -> None:
        density.LocalDensity._batch = self.original


def products(model: VAE, rows: dict[bool, int], device: str) -> float:
    """Seconds of the decoder's matrix products alone, forwards for all rows and back for gradients."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    batch = density.CHUNK
    z = torch.randn(batch, weights[0].shape[1], device=device)

    def once(gradient: bool) -> None:
        h = z
        for weight in weights:
            h = h @ weight.T
        for weight in weights[::-1] if gradient else ():
            h = h @ weight

    with torch.no_grad():
        return sum(
            seconds(lambda g=gradient: [once(g) for _ in range(20)], device) / 20 * n / batch
            for gradient, n in rows.items()
        )


def report(name: str, model: VAE, guide: AmortizedNormal, x: torch.Tensor, device: str) -> None:
    with Counted() as counted:
        refined = pyro_vae.refine(model, guide, x)
    took = seconds(lambda: pyro_vae.refine(model, guide, x), device)
    bare = products(model, counted.rows, device)
    each = counted.rows[True] / len(x)
    print(
        f"{name}: {len(x)} observations refined in {took:.2f} s, {each:.0f} gradients each; their matrix "
        f"products alone {bare:.2f} s ({took / bare:.1f} times); ELBO {refined.elbo_before.mean():.2f} → "
        f"{refined.elbo.mean():.2f}, converged {refined.converged.double().mean():.1%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--mnist", help="folder of MNIST's IDX files")
    parser.add_argument("--fits", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.load("digits")
    train, held_out = data.split(digits, 0.2, seed=0)
    x, new = (torch.as_tensor(part.x).to(chosen.device) for part in (train, held_out))
    spent = []
    for seed in range(chosen.fits):
        model, guide = pair(x, likelihoods.Binomial(16), [128, 128], 8, chosen.device)
        pyro_vae.fit(model, guide, x, epochs=100, batch_size=64, lr=2e-3, seed=seed, progress=False)
        if seed == 0:
            report("digits", model, guide, new, chosen.device)
        clock = time.process_time if chosen.device == "cpu" else time.perf_counter
        start = clock()
        diagnosed = pyro_vae.diagnose(model, guide, new, refined=True)
        spent.append(clock() - start)
        good = float((diagnosed["khat"] <= 0.5).mean())
        print(
            f"digits, seed {seed}: refined evidence {float(diagnosed['log_evidence'].mean()):.3f} nats, "
            f"k̂ ≤ 0.5 for {good:.2%}, {spent[-1]:.2f} s",
            flush=True,
        )
    print(f"digits: {len(spent)} fits × {len(new)} observations: {sum(spent):.1f} s")
    if chosen.mnist:
        mnist = data.load("mnist", root=chosen.mnist)
        images = torch.as_tensor(mnist.x[: chosen.images]).float().to(chosen.device)
        model, guide = pair(images, "bernoulli", [400], 20, chosen.device)
        pyro_vae.fit(model, guide, images, epochs=20, batch_size=128, lr=1e-3, progress=False)
        report("MNIST 784-400-20", model, guide, images, chosen.device)


if __name__ == "__main__":
    main()
