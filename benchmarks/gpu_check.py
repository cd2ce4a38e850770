"""The parts of ``gpu_check.sh`` that are Python: versions, README, kernels, posteriors, long fits.

python benchmarks/gpu_check.py readme cuda
python benchmarks/gpu_check.py posterior cuda FOLDER_WITH_MNIST
"""

import argparse
import contextlib
import importlib.metadata
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def seconds(work: Callable[[], object], device: str) -> float:
    """How long a call takes, the device's own work included."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def versions() -> None:
    for package in ("torch", "pyro-ppl", "arviz", "jax", "numpyro", "numpy"):
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "is not installed")
    print("Python", sys.version.split()[0], "CUDA", torch.version.cuda)


def readme(device: str) -> None:
    """The README's first Python block, with the device named."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    code = re.sub(r"(pyro_vae\.fit\([^\n]*)\)\n", rf'\1, device="{device}")\n', code)
    print(code)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it draws a picture
        exec(compile(code, "README.md", "exec"), {})


def mnist_fit(device: str, folder: str, steps: int) -> tuple[object, torch.Tensor]:
    import pyro_vae
    from pyro_vae.data import binarize, load
    from pyro_vae.models import VAE, MLPDecoder, MLPEncoder

    train = torch.from_numpy(binarize(load("mnist", root=folder, part="train", likelihood="normal").x))
    test = torch.from_numpy(binarize(load("mnist", root=folder, part="test", likelihood="normal").x))
    model = VAE(MLPDecoder(20, [400], 784), 20, "bernoulli")
    guide = pyro_vae.guides.AmortizedNormal(model, MLPEncoder(784, [400]), scale="softplus")
    fitted = pyro_vae.fit(model, guide, train, steps=steps, device=device, progress=False)
    print(f"{steps} steps of 784-400-20 by {fitted.engine}: {fitted.steps_per_second:.0f} steps/s")
    return fitted, test


def posterior(device: str, folder: str) -> None:
    """``refine`` and ``diagnose`` of MNIST's test images, beside the bare products of the same size."""
    import pyro_vae

    small = device == "cpu"
    fitted, test = mnist_fit(device, folder, 200 if small else 20_000)
    test = test[: 200 if small else 10_000].to(device)
    for draws in (100,) if small else (100, 1000):
        taken = seconds(lambda d=draws: pyro_vae.diagnose(fitted.model, fitted.guide, test, draws=d), device)
        print(f"diagnose of {len(test)} images, {draws} draws: {taken:.2f} s")
    refine = getattr(pyro_vae, "refine", None)
    if refine is None:
        print("refine is not there")
        return
    for name in ("first", "again"):
        taken = seconds(lambda: refine(fitted.model, fitted.guide, test), device)
        print(f"refine of {len(test)} images, {name}: {taken:.2f} s")
    refined = refine(fitted.model, fitted.guide, test)
    found = pyro_vae.diagnose(fitted.model, refined, test, draws=200)
    bad = float((found["khat"] > 0.5).mean())
    print(f"with the refined guide: evidence {float(found['log_evidence'].mean()):.2f}, khat > 0.5 {bad:.3f}")


def published(device: str, folder: str) -> None:
    """Speed of the published architecture, 784-200-200-50 at batch 100."""
    import pyro_vae
    from evidence.experiments.published import make_pair
    from pyro_vae.data import load
    from pyro_vae.svi import ELBO, IWAE

    train = load("mnist", root=folder, part="train", likelihood="normal").x
    for name, objective in (("VAE", ELBO()), ("IWAE-5", IWAE(5))):
        model, guide = make_pair("logstd", train)
        steps = 50 if device == "cpu" else 5_000
        binary = (torch.rand(train.shape) < torch.from_numpy(train)).float()
        fitted = pyro_vae.fit(
            model,
            guide,
            binary,
            steps=steps,
            batch_size=100,
            objective=objective,
            device=device,
            progress=False,
        )
        print(f"{name}: {fitted.engine}, {fitted.steps_per_second:.0f} steps/s", flush=True)


class EnoughError(Exception):
    """What is measured has been seen."""


def profile(device: str, *sizes: str) -> None:
    """Which kernels a fused step starts, and how long the card waits between them."""
    from steps_compared import BATCH, STEPS, our_pair, torch_data
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    import pyro_vae

    cuda = device == "cuda"
    for features, hidden, latent in [map(int, sizes)] if sizes else [(64, 64, 8), (784, 400, 20)]:
        model, guide = our_pair(features, hidden, latent)
        watch = torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
        clock = [0.0, 0.0]

        def at_the_end_of_an_epoch(record: Any, watch: Any = watch, clock: list[float] = clock) -> None:
            if record.epoch == 5:  # built and warm
                clock[0] = time.perf_counter()
            elif record.epoch == 15:
                clock[1] = time.perf_counter()
                watch.start()
            elif record.epoch == 17:
                watch.stop()
                raise EnoughError

        with contextlib.suppress(EnoughError):
            pyro_vae.fit(
                model,
                guide,
                torch_data(features).to(device),
                epochs=10**6,
                batch_size=BATCH,
                engine="cuda-graph" if cuda else "captured",
                device=device,
                progress=False,
                callbacks=[at_the_end_of_an_epoch],
            )
        took: dict[str, list[float]] = defaultdict(list)
        for event in watch.events():
            if not cuda or event.device_type == DeviceType.CUDA:
                took[event.name].append(event.time_range.elapsed_us())
        steps = 2 * STEPS
        busy, count = sum(map(sum, took.values())) / steps, sum(map(len, took.values())) / steps
        step = (clock[1] - clock[0]) / (10 * STEPS) * 1e6
        print(f"{features}-{hidden}-{latent}: {step:.0f} µs a step; {count:.1f} kernels, {busy:.0f} µs busy")
        for name, times in sorted(took.items(), key=lambda pair: -sum(pair[1]))[:30]:
            print(f"  {sum(times) / steps:7.2f} µs in {len(times) / steps:5.2f}: {name[:110]}", flush=True)


PARTS: dict[str, Callable[..., None]] = {
    "versions": versions,
    "readme": readme,
    "posterior": posterior,
    "published": published,
    "profile": profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("arguments", nargs="*", metavar="DEVICE FOLDER")
    options = parser.parse_args()
    PARTS[options.part](*options.arguments)


if __name__ == "__main__":
    main()
