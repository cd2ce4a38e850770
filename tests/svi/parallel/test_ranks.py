"""One fit on two processes: the fit of one process, shared out."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_vae.batches.batches import ArrayBatches, LoaderBatches, epoch_order
from pyro_vae.batches.files import MappedRows
from pyro_vae.batches.shares import share_of
from pyro_vae.svi import ELBO, IWAE, Checkpoint, Fit, fit
from pyro_vae.svi.parallel import launch
from pyro_vae.svi.parallel.ranks import joined
from tests.svi.pairs import PAIRS, D, Pair, Z, observations
from tests.svi.ranks import run_ranks

CPU = torch.device("cpu")
N, BATCH = 37, 8
"""The last batch has 5 observations: 3 for one rank and 2 for the other."""


class GivenNoise(dist.Normal):
    """A Normal whose draw is told beforehand, so that a row has the same noise on every rank."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GivenNoise":
        return GivenNoise(*(t.expand(batch_shape) for t in (self.loc, self.scale, self.noise)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise


class Steady(PyroModule):
    """A pair without chance: local latents, a global one if asked for, a plate that rescales if asked to."""

    def __init__(self, full: int | None = None, global_latent: bool = False) -> None:
        super().__init__()
        self.full, self.global_latent = full, global_latent
        self.decoder, self.loc, self.raw = nn.Linear(Z, D), nn.Linear(D, Z), nn.Linear(D, Z)
        self.mean, self.log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", self.full or len(x), subsample_size=len(x))

    def model(self, x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(torch.zeros(()), 1.0)) if self.global_latent else 0.0
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + shift).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        if self.global_latent:
            pyro.sample("shift", GivenNoise(self.mean, self.log_scale.exp(), torch.full((), 0.3)))
        with self.plate(x):
            noise = (7.0 * x @ torch.arange(1.0, D * Z + 1).view(D, Z)).sin()
            pyro.sample("z", GivenNoise(self.loc(x), self.raw(x).exp(), noise).to_event(1))


STEADY: dict[str, dict[str, Any]] = {
    "local": {},
    "rescaled": {"full": 100},
    "global": {"global_latent": True},
    "global and rescaled": {"global_latent": True, "full": 100},
}


def steady_fit(name: str, **options: Any) -> Fit:
    torch.manual_seed(0)
    pair = Steady(**STEADY[name])
    given: dict[str, Any] = {"epochs": 3, "batch_size": BATCH, "lr": 0.05, "max_norm": 3.0, "seed": 2}
    return fit(pair.model, pair.guide, observations(N), **{**given, "progress": False, **options})


def parameters(fitted: Fit) -> list[Tensor]:
    owner = getattr(fitted.model, "__self__", fitted.model)
    return [parameter.detach() for parameter in owner.parameters()]


def on_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    return run_ranks(2, function, *args)


def plain(fitted: Fit) -> tuple[list[list[float]], list[float], dict[str, list[float]]]:
    """What can be sent from a process: parameters, losses, what is noted by epoch."""
    history = fitted.history
    by_epoch = {name: history[name].values.tolist() for name in ("kl", "reconstruction", "grad_norm")}
    return [p.flatten().tolist() for p in parameters(fitted)], history["loss"].values.tolist(), by_epoch


def _steady_fits(distributed: bool = True) -> dict[str, Any]:
    engines = {"local": "captured", "rescaled": "eager", "global": "captured", "global and rescaled": "eager"}
    return {
        name: plain(steady_fit(name, engine=engine, distributed=distributed))
        for name, engine in engines.items()
    }


@pytest.fixture(scope="module")
def steady_fits() -> list[dict[str, Any]]:
    return on_ranks(_steady_fits)


@pytest.mark.parametrize("name", STEADY)
def test_the_fit_of_two_processes_is_that_of_one(steady_fits: list[dict[str, Any]], name: str) -> None:
    """Same losses, gradients (their norms; the clip) and parameters, where the noise belongs to the row; the
    ranks among themselves to the bit."""
    assert steady_fits[0][name] == steady_fits[1][name]
    leaves, losses, by_epoch = steady_fits[0][name]
    alone = plain(steady_fit(name))
    torch.testing.assert_close(leaves, alone[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(losses, alone[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(by_epoch, alone[2], rtol=1e-9, atol=1e-10)


class NegativeELBO(nn.Module):
    """Per observation, for torch's own way to many devices."""

    def __init__(self, pair: Steady) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:
        return ELBO().estimate(self.pair.model, self.pair.guide, (x,)).surrogate / len(x)


def _leave_gradients_by_torch(pair: Steady, share: Tensor) -> None:
    """A function of its own: what torch makes must be gone before the process group is."""
    wrapped = DistributedDataParallel(NegativeELBO(pair))
    wrapped(share).backward()


def _gradients_both_ways() -> tuple[list[Tensor], list[Tensor]]:
    pair, x = Steady(), observations(BATCH)
    names = dict(pair.named_parameters())
    leaves = [p for name, p in names.items() if name not in ("mean", "log_scale")]
    pair.mean.requires_grad_(False), pair.log_scale.requires_grad_(False)
    with joined(True, CPU) as ranks:
        share = x[ranks.rank :: 2]
        ranks.begin(
            pair.model,
            pair.guide,
            ELBO(),
            {str(i): p for i, p in enumerate(leaves)},
            (share,),
            rescaled=False,
        )

        def gradients(batch: tuple[Tensor, ...]) -> list[Tensor]:
            loss = ELBO().estimate(pair.model, pair.guide, batch).surrogate
            return [loss.detach()] * 3 + list(torch.autograd.grad(loss, leaves))

        ours = [gradient.clone() for gradient in ranks.total(gradients, (share,))[3:]]
        _leave_gradients_by_torch(pair, share)
    return [g.tolist() for g in ours], [(BATCH * p.grad).tolist() for p in leaves]


def test_gradients_are_those_of_distributed_data_parallel() -> None:
    for ours, theirs in on_ranks(_gradients_both_ways):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def _with_chance() -> Any:
    """Pairs that draw, made from different seeds on the ranks, and one that keeps statistics."""
    results = []
    for name, rows in {"batch norm": 12, "flow": 9, "AutoNormal": 9, "functions": 9}.items():
        torch.manual_seed(int(os.environ["RANK"]))
        pair = PAIRS[name]()
        options: dict[str, Any] = {"validation": observations(5), "patience": 2, "progress": False}
        options["engine"] = "captured" if name == "batch norm" else "eager"
        done = fit(
            pair.model, pair.guide, observations(rows), epochs=3, batch_size=4, distributed=True, **options
        )
        tensors = [
            t.tolist() for p in (pair.model, pair.guide) if isinstance(p, nn.Module) for t in p.buffers()
        ]
        state = [p.tolist() for p in done._state["params"].values()]
        leaves = [p.tolist() for p in pair.guide.parameters()] if isinstance(pair.guide, nn.Module) else []
        results.append([tensors, state, leaves, done.history["validation"].values.tolist()])
    return results


def test_parameters_buffers_and_validation_are_equal_on_all_ranks() -> None:
    """However the ranks' own pairs began. The last of 9 observations is a batch; rank 1 has nothing of it."""
    first, second = on_ranks(_with_chance)
    assert first == second


def _draws() -> list[float]:
    with joined(True, CPU) as ranks:
        drawn = []
        for step in (0, 1, 0):
            ranks.set_stream(5, step)
            drawn.append(float(torch.rand(())))
    return drawn


def test_noise_differs_by_rank_and_step_and_by_nothing_else() -> None:
    first, second = on_ranks(_draws)
    assert first[0] == first[2]
    assert second[0] == second[2]
    assert len({*first, *second}) == 4


class Breaks(Steady):
    """Goes wrong for one row, which is on one of the ranks."""

    def __init__(self, how: str, row: Tensor, path: Path) -> None:
        super().__init__()
        self._how, self.row, self.over = how, row, path.with_name("over")

    def guide(self, x: Tensor) -> None:
        if self._how != "nan" and bool((x == self.row).all(-1).any()):
            if self._how == "raise":
                raise KeyError("no such thing")
            if self._how == "die":
                os._exit(1)
            while not self.over.exists():
                time.sleep(0.02)
        super().guide(x)

    def model(self, x: Tensor) -> None:
        super().model(x)
        if self._how == "nan":
            with pyro.plate("factors", len(x)):
                bad = (x == self.row).all(-1)
                pyro.factor("bad", torch.where(bad, torch.nan, 0.0))


def distinct_rows() -> Tensor:
    """The numbers 0, 1, … in binary."""
    return torch.arange(4 * BATCH)[:, None].bitwise_and(2 ** torch.arange(D)).ne(0).double()


def _broken(how: str, path: Path, epochs: int = 3) -> Any:
    try:
        return _fit_broken(how, path, epochs)
    finally:
        path.with_name("over").touch()


def _fit_broken(how: str, path: Path, epochs: int) -> Any:
    launch.GRACE = timedelta(seconds=0.5)
    launch.PATIENCE = timedelta(seconds=1.5 if how == "hang" else 60.0)
    x = distinct_rows()
    third_batch_of_rank_1 = epoch_order(len(x), 0, 0)[2 * BATCH + 1 : 3 * BATCH : 2]
    pair = Breaks(how, x[third_batch_of_rank_1[0]], path)
    done = fit(
        pair.model,
        pair.guide,
        x,
        epochs=epochs,
        batch_size=BATCH,
        engine="eager",
        checkpoint=Checkpoint(path, seconds=0.0),
        progress=False,
        distributed=True,
    )
    return done.history["nonfinite"].values.tolist(), plain(done)[0]


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    first, second = on_ranks(_broken, "nan", tmp_path / "state", 2)
    assert first[0] == [1, 1]
    assert first == second


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("raise", "rank 1 failed, so this fit ends on all 2 ranks: KeyError: 'no such thing'"),
        ("die", "rank 1 did not answer, so this fit ends on all 2 ranks"),
        ("hang", "rank 1 did not answer, so this fit ends on all 2 ranks"),
    ],
)
def test_a_rank_that_fails_ends_all_and_the_checkpoint_is_whole(
    how: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    first, _ = on_ranks(_broken, how, path)
    assert first.startswith(f"RankError: {sentence}")
    x = distinct_rows()
    pair = Breaks("", x[0], path)
    goes_on = fit(
        pair.model, pair.guide, x, epochs=3, batch_size=BATCH, engine="eager", checkpoint=path, progress=False
    )
    assert goes_on.history.sizes["step"] == 12


def _wrong_from_the_start(path: Path) -> list[str]:
    """Rank 0 finds a damaged checkpoint; the ranks make different pairs; one changes its parameters."""
    rank, said = int(os.environ["RANK"]), []
    options: dict[str, Any] = {"epochs": 2, "batch_size": BATCH, "progress": False, "distributed": True}

    def try_to(pair: Pair | Steady, **more: Any) -> None:
        try:
            fit(pair.model, pair.guide, observations(N), **options, **more)
        except (RuntimeError, ValueError) as error:
            said.append(str(error))

    try_to(Steady(), checkpoint=path)
    try_to(PAIRS["normal"]() if rank else Steady())
    pair = Steady()
    try_to(pair, callbacks=[lambda record: pair.mean.data.add_(rank)])
    try_to(PAIRS["AutoNormal"](), objective=IWAE(2))
    return said


def test_what_is_wrong_on_one_rank_is_told_by_all(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"nothing")
    first, second = on_ranks(_wrong_from_the_start, path)
    assert first[0].startswith(f"the checkpoint {path} cannot be read")
    assert second[0] == f"rank 0 failed, so this fit ends on all 2 ranks: ValueError: {first[0]}"
    assert path.read_bytes() == b"nothing"
    for said in (first, second):
        assert said[1].startswith("rank 1 has made a pair with other parameters than rank 0")
        assert said[2].startswith("rank 1 has other parameters than rank 0: a callback")
        assert said[3].startswith("objective is IWAE(num_particles=2), and this pair has latents outside")


class StopError(RuntimeError):
    """Stands for whatever ends a process."""


def stop_at(epoch: int) -> Callable[[Any], None]:
    def callback(record: Any) -> None:
        if record.epoch == epoch:
            raise StopError("enough")

    return callback


def chance_fit(path: Path | None, *, interrupted: bool = False, distributed: bool = True) -> Fit:
    torch.manual_seed(0)
    pair = PAIRS["dropout"]()
    return fit(
        pair.model,
        pair.guide,
        observations(N),
        epochs=4,
        batch_size=BATCH,
        lr=0.05,
        engine="eager",
        checkpoint=None if path is None else Checkpoint(path, seconds=0.0),
        callbacks=[stop_at(2)] if interrupted else [],
        progress=False,
        distributed=distributed,
    )


def _interrupted(folder: Path, rank_0_only: bool) -> Any:
    path = folder / "state"
    whole = plain(chance_fit(None))
    alone = rank_0_only and os.environ["RANK"] != "0"
    try:
        chance_fit(path, interrupted=not alone)
    except RuntimeError as error:
        said = str(error)
    if os.environ["RANK"] == "0":
        (folder / "for one").write_bytes(path.read_bytes())
    return whole == plain(chance_fit(path)), said


def test_it_goes_on_to_the_same_bits_and_with_another_number_of_processes(tmp_path: Path) -> None:
    (same_0, said_0), (same_1, said_1) = on_ranks(_interrupted, tmp_path, True)
    assert (said_0, said_1) == (
        "enough",
        "rank 0 failed, so this fit ends on all 2 ranks: StopError: enough",
    )
    assert same_0
    assert same_1
    alone = chance_fit(tmp_path / "for one", distributed=False)
    assert alone.history.sizes["step"] == 4 * 5
    one, two = (chance_fit(None, distributed=False), chance_fit(tmp_path / "new", distributed=False))
    assert plain(one) == plain(two)


def _from_one_to_two(path: Path) -> Any:
    return plain(chance_fit(path))


def test_what_one_process_began_two_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(StopError):
        chance_fit(path, interrupted=True, distributed=False)
    begun = chance_fit(None, distributed=False).history["loss"].values[:10].tolist()
    first, second = on_ranks(_from_one_to_two, path)
    assert first == second
    assert first[1][:10] == begun


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 11

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor([float(row)])


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(1)])

    def __len__(self) -> int:
        return 1


def loader_batches(data: Dataset[Any], **options: Any) -> LoaderBatches:
    return LoaderBatches(DataLoader(data, **options), CPU, torch.float64, seed=0)


@pytest.mark.parametrize(
    "whole",
    [
        ArrayBatches([torch.arange(11.0)[:, None]], 4, seed=0),
        ArrayBatches([MappedRows(np.arange(11.0)[:, None], CPU, torch.float64)], 4, seed=0),
        loader_batches(Numbers(), batch_size=4, shuffle=True),
        loader_batches(TensorDataset(torch.arange(11.0)[:, None]), batch_size=4),
    ],
    ids=["arrays", "mapped arrays", "dataset", "loader in order"],
)
def test_shares_make_up_each_batch(whole: ArrayBatches | LoaderBatches) -> None:
    shares = [share_of(whole, rank, 3) for rank in range(3)]
    assert {len(share) for share in shares} == {len(whole)}
    assert {share.observations for share in shares} == {11}
    for epoch in (0, 1):
        every = [[batch[0] for batch in share.epoch(epoch)] for share in shares]
        for (batch,), *parts in zip(whole.epoch(epoch), *every, strict=True):
            assert sorted(batch.ravel().tolist()) == sorted(torch.cat(parts).ravel().tolist())
    assert len(shares[0].first()[0]) == 2


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch has 2 observations and there are 3 ranks"):
        share_of(ArrayBatches([torch.arange(4)], 2, seed=0), 0, 3)
    with pytest.raises(ValueError, match="DataLoader of an IterableDataset"):
        share_of(loader_batches(Stream()), 0, 2)
    pair = PAIRS["normal"]()
    with pytest.raises(ValueError, match="no process group and no RANK in the environment; start with"):
        fit(pair.model, pair.guide, observations(), epochs=1, progress=False, distributed=True)


def test_more_ranks_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would end in a message about duplicate devices, long after the start."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="LOCAL_WORLD_SIZE is 4, and this machine has 1 GPU; start with"):
        launch.join_group(torch.device("cuda", 0))
