"""Interrupted fits: they go on as if nothing had happened, or say why they cannot."""

import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.data import DynamicBinarization
from pyro_vae.storage.plain import pack
from pyro_vae.svi import ELBO, IWAE, Checkpoint, EpochRecord, Fit, NonFiniteError, fit
from pyro_vae.svi.engines.eager import EagerSteps
from pyro_vae.svi.engines.native import NativeFunction
from pyro_vae.svi.engines.steps import Taken
from pyro_vae.svi.loop import Loop
from tests.svi.pairs import PAIRS, Decoder, Encoder, Pair, observations

EACH_STEP = 0.0


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def options_of(path: Path | None, **options: Any) -> dict[str, Any]:
    checkpoint = None if path is None else Checkpoint(path, seconds=EACH_STEP)
    given = {"epochs": 4, "batch_size": 16, "lr": 0.02, "seed": 3, "progress": False, **options}
    return {**given, "checkpoint": checkpoint}


def fitted(make: Callable[[], Pair], data: Any, path: Path | None = None, **options: Any) -> Fit:
    pair = make()
    return fit(pair.model, pair.guide, data() if callable(data) else data, **options_of(path, **options))


@contextmanager
def stopping_after(steps: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fit inside ends when it has taken one step more, before it has noted or saved it."""
    note = Loop._note

    def stop(loop: Loop, taken: Taken) -> None:
        if loop.step == steps:
            raise StoppedError
        note(loop, taken)

    with patch.context() as patched:
        patched.setattr(Loop, "_note", stop)
        with pytest.raises(StoppedError):
            yield


def interrupted(
    make: Callable[[], Pair], data: Any, path: Path, after: int, patch: pytest.MonkeyPatch, **options: Any
) -> None:
    with stopping_after(after, patch):
        fitted(make, data, path, **options)


def tensors(result: Fit) -> list[Tensor]:
    found: list[Tensor] = []
    for program in (result.model, result.guide):
        module = getattr(program, "__self__", program)
        if isinstance(module, nn.Module):
            found += [*module.parameters(), *module.buffers()]
        else:
            found += [p for _, p in sorted(program.state["params"].items())]  # type: ignore[attr-defined]
    return found


def assert_equal_bits(one: Fit, other: Fit) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert torch.equal(a, b)
    assert one.history.identical(other.history)
    assert one.engine == other.engine


def seeded(make: Callable[[], Pair], seed: int) -> Callable[[], Pair]:
    def made() -> Pair:
        torch.manual_seed(seed)
        return make()

    return made


def check_resumed(
    make: Callable[[], Pair],
    data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: tuple[int, ...] = (0, 1, 7),
    **options: Any,
) -> None:
    """The interrupted fit began with the weights of the whole one; the one that goes on has other weights."""
    whole = fitted(seeded(make, 0), data, **options)
    for steps in after:
        path = tmp_path / f"{steps}.state"
        interrupted(seeded(make, 0), data, path, steps, monkeypatch, **options)
        assert_equal_bits(fitted(seeded(make, 1), data, path, **options), whole)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *(("batch norm", "auto"), ("functions", "auto"), ("tutorial", "eager"), ("flow", "eager")),
        *(("score function", "eager"), ("AutoMultivariateNormal", "eager")),
    ],
)
def test_every_kind_of_state_goes_on_to_the_same_bits(
    name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers, the store, bound methods, a cache of transforms, a baseline, a guide that sets itself up."""
    check_resumed(PAIRS[name], observations(40), tmp_path, monkeypatch, after=(7,), engine=engine)


@pytest.mark.parametrize(("engine", "after"), [("eager", (0, 4, 6, 11)), ("captured", (4, 11))])
def test_wherever_it_is_interrupted(
    engine: str, after: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches an epoch: at once, within an epoch, at its end, at the last step."""
    check_resumed(PAIRS["dropout"], observations(40), tmp_path, monkeypatch, after, engine=engine)


@pytest.mark.parametrize(
    ("options", "stops"),
    [({}, (0, 4, 6)), ({"schedule": lambda o: schedules.CosineAnnealingLR(o, 12), "max_norm": 1.0}, (4,))],
    ids=["plain", "schedule"],
)
def test_many_steps_per_call_go_on_between_two_calls(
    options: dict[str, Any], stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted(seeded(PAIRS["normal"], 0), observations(40), engine="native", **options)
    if whole.engine != "native":
        pytest.skip("there is no C++ compiler here")
    for after in stops:
        path = tmp_path / f"{after}.state"
        with monkeypatch.context() as patched:
            patched.setattr(NativeFunction, "steps_per_call", 1)  # so that there is a call to stop after
            interrupted(
                seeded(PAIRS["normal"], 0),
                observations(40),
                path,
                after,
                patched,
                engine="native",
                **options,
            )
        gone_on = fitted(seeded(PAIRS["normal"], 1), observations(40), path, engine="native", **options)
        assert_equal_bits(gone_on, whole)


def test_the_choice_of_an_engine_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer fit would be worth a build; the one that goes on keeps to what it began with."""
    interrupted(PAIRS["normal"], observations(40), tmp_path / "state", 5, monkeypatch, engine="auto")
    monkeypatch.setattr("pyro_vae.svi.engines.choice.build_pays", lambda *_: True)
    resumed = fitted(PAIRS["normal"], observations(40), tmp_path / "state", engine="auto")
    assert resumed.engine == "captured"


class Momentum(torch.optim.SGD):
    """With a count of its own, as a user's optimizer may have."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, lr=lr, momentum=0.9)


OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": torch.optim.AdamW},
    "momentum": {"optimizer": Momentum, "lr": 1e-3},
    "RMSprop": {"optimizer": torch.optim.RMSprop},
    "matched rates": {"lr_multiplier": "matched"},
    "clipping": {"max_norm": 1.0},
    "cosine": {"schedule": lambda o: schedules.CosineAnnealingLR(o, 12)},
    "one cycle": {"schedule": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=12)},
    "steps": {"schedule": lambda o: schedules.MultiStepLR(o, [2, 5, 5])},
    "cyclic": {"schedule": lambda o: schedules.CyclicLR(o, 1e-3, 1e-2, 2, cycle_momentum=False)},
    "a function": {"schedule": lambda o: schedules.LambdaLR(o, lambda step: 0.9**step)},
    "a sequence": {
        "schedule": lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, total_iters=3), schedules.ExponentialLR(o, 0.9)], [3]
        )
    },
    "warm-up": {"objective": ELBO(kl_weight=lambda step: min(1.0, (step + 1) / 9))},
    "IWAE": {"objective": IWAE(3)},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # SequentialLR's own
def test_optimizers_schedules_and_objectives_go_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step; that an engine takes the steps that these say is tested with the engines."""
    options = {"engine": "eager", **OPTIONS[name]}
    check_resumed(PAIRS["normal"], observations(40), tmp_path, monkeypatch, after=(4,), **options)


def test_early_stopping_goes_on_with_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = observations(64)
    options = {
        "lr": 0.05,
        "validation": x[16:],
        "patience": 5,
        "epochs": 200,
        "batch_size": 4,
        "engine": "eager",
    }
    whole = fitted(seeded(PAIRS["normal"], 0), x[:16], **options)
    epochs = whole.history.sizes["epoch"]
    assert 5 < epochs < 200
    path, after = tmp_path / "state", 4 * (epochs - 3) + 1
    interrupted(seeded(PAIRS["normal"], 0), x[:16], path, after, monkeypatch, **options)
    for seed in (1, 2):  # the second finds it finished
        assert_equal_bits(fitted(seeded(PAIRS["normal"], seed), x[:16], path, **options), whole)


class Channels(Encoder):
    """A convolution whose weight is not laid out in the order of its indices."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, (1, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            features = self.convolution(x.reshape(-1, 2, 1, 3)).flatten(1)
            pyro.sample("z", self.posterior(self.body(features)))


def test_moments_are_laid_out_as_their_parameters_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resumed(lambda: Pair(Decoder(), Channels()), observations(40), tmp_path, monkeypatch, after=(4,))


class Remembering(Encoder):
    """Keeps a buffer that is not saved with the module, and a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.gain = 1.0

    def posterior(self, h: Tensor) -> Any:
        if self.training:
            with torch.no_grad():
                self.seen += 1
        return super().posterior(h * self.gain + self.seen * 0.01)


class Softening:
    """A callback that changes a plain number on a module, and has a state of its own."""

    def __init__(self, encoder: Remembering) -> None:
        self.encoder, self.epochs = encoder, list[int]()

    def __call__(self, record: EpochRecord) -> None:
        self.epochs.append(record.epoch)
        self.encoder.gain = 1.0 / (1 + len(self.epochs))

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]


def test_buffers_plain_numbers_and_callbacks_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Softening] = []

    def run(seed: int, path: Path | None) -> Fit:
        pair = seeded(lambda: Pair(Decoder(), Remembering()), seed)()
        made.append(Softening(pair.guide))  # type: ignore[arg-type]
        options = options_of(path, callbacks=[made[-1]])
        return fit(pair.model, pair.guide, observations(40), **options)

    whole = run(0, None)
    path = tmp_path / "state"
    with stopping_after(7, monkeypatch):
        run(0, path)
    assert_equal_bits(run(1, path), whole)
    assert made[0].epochs == made[2].epochs == [0, 1, 2, 3]
    assert made[2].encoder.gain == made[0].encoder.gain == 0.2


DATA: dict[str, Callable[[], Any]] = {
    "dataset": lambda: TensorDataset(observations(40)),
    "loader": lambda: DataLoader(TensorDataset(observations(40)), batch_size=16, shuffle=True),
    "loader with a stream": lambda: DataLoader(
        TensorDataset(observations(40)), 16, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "dynamic binarization": lambda: DynamicBinarization(observations(40) * 0.8),
    "tuple": lambda: (observations(40),),
}


@pytest.mark.parametrize("name", DATA)
def test_data_of_every_kind_go_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an epoch and at its end; loaders are made anew, as another process makes them."""
    check_resumed(PAIRS["normal"], DATA[name], tmp_path, monkeypatch, after=(3, 7), engine="eager")


def test_a_fit_goes_on_to_more_epochs(tmp_path: Path) -> None:
    whole = fitted(seeded(PAIRS["normal"], 0), observations(40), epochs=6)
    fitted(seeded(PAIRS["normal"], 0), observations(40), tmp_path / "state", epochs=3)
    assert_equal_bits(
        fitted(seeded(PAIRS["normal"], 1), observations(40), tmp_path / "state", epochs=6), whole
    )
    with pytest.raises(ValueError, match="is at step 18 already, and this fit ends at 9; give more epochs"):
        fitted(PAIRS["normal"], observations(40), tmp_path / "state", epochs=3)


def test_a_fit_that_ended_within_an_epoch_cannot_go_on(tmp_path: Path) -> None:
    fitted(PAIRS["normal"], observations(40), tmp_path / "state", epochs=None, steps=4)
    again = fitted(PAIRS["normal"], observations(40), tmp_path / "state", epochs=None, steps=4)
    assert again.history.sizes == {"step": 4, "epoch": 2}
    with pytest.raises(ValueError, match="ended within an epoch, at step 4, so it cannot go on to step 12"):
        fitted(PAIRS["normal"], observations(40), tmp_path / "state")


def wider() -> Pair:
    pair = PAIRS["normal"]()
    pair.guide.body = nn.Sequential(nn.Linear(6, 5), nn.ReLU())  # type: ignore[attr-defined]
    return pair


class Tempered(Decoder):
    """Differs from a Decoder in a formula alone."""

    def forward(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=0.5):
            super().forward(x)


Tempered.__name__ = "Decoder"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a fit of one epoch."""
    torch.set_default_dtype(torch.float64)
    path: Path = tmp_path_factory.mktemp("fit") / "state"
    fitted(PAIRS["normal"], observations(40), path, epochs=1)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 4}, "its seed was 3, and here it is 4"),
        ({"lr": 0.01}, "its lr was 0.02, and here it is 0.01"),
        ({"batch_size": 8}, "its batch_size was 16, and here it is 8"),
        ({"engine": "eager"}, "its engine was 'auto', and here it is 'eager'"),
        ({"max_norm": 1.0}, "its max_norm was None, and here it is 1.0"),
        ({"objective": ELBO(num_particles=2)}, r"objective was ELBO\(num_particles=1.* it is ELBO\(num_part"),
        ({"optimizer": torch.optim.AdamW}, "optimizer was Adam, and here it is AdamW"),
        ({"schedule": lambda o: schedules.StepLR(o, 3)}, "schedule was None, and here it is StepLR"),
        ({"validation": observations(8), "patience": 2}, "patience was None, and here it is 2"),
        ({"make": PAIRS["gamma"]}, "modules were Encoder, and here they are GammaEncoder"),
        ({"make": wider}, "modules were Tanh body.1, and here they are ReLU body.1"),
        ({"make": PAIRS["functions"]}, "modules were Decoder, and here they are missing"),
        (
            {"optimizer": lambda groups, lr: torch.optim.Adam(groups, lr, eps=1e-3)},
            "eps=1e-08 of group 0, and",
        ),
        ({"make": PAIRS["rescaled to 100"]}, "this pair has a loss of .* the model, the guide or"),
        ({"make": lambda: Pair(Tempered(), Encoder())}, "this pair has a loss of .* the model, the guide or"),
        ({"data": observations(41)}, "data were 40 observations in 3 batches, checksum .* here they are 41"),
        ({"data": 1 - observations(40)}, "data were 40 observations .* here they are 40 observations"),
        ({"callbacks": [Softening(Remembering())]}, "callbacks with a state were missing, and here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_checkpoint_of_another_fit_is_refused_by_name(
    change: dict[str, Any], sentence: str, checkpoint: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    path.write_bytes(checkpoint)
    other = {"make": PAIRS["normal"], "data": observations(40), **change}
    with pytest.raises(ValueError, match=f"checkpoint {path} is of another fit: .*{sentence}"):
        fitted(other.pop("make"), other.pop("data"), path, **other)
    assert path.read_bytes() == checkpoint


def test_a_setting_that_differs_is_refused(tmp_path: Path) -> None:
    def dropout(share: float) -> Pair:
        return Pair(Decoder(), Encoder(layers=(nn.Dropout(share),)))

    fitted(lambda: dropout(0.4), observations(40), tmp_path / "state", epochs=1)
    with pytest.raises(ValueError, match=r"its guide.body.1.p was 0.4, and here it is 0.5"):
        fitted(lambda: dropout(0.5), observations(40), tmp_path / "state")


def test_two_networks_of_one_class_keep_their_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Net(nn.Module):
        """A model and a guide in one class, told apart by a plain number."""

        def __init__(self, gain: float) -> None:
            super().__init__()
            self.gain, self.decoder, self.encoder = gain, Decoder(), Encoder()

        def model(self, x: Tensor) -> None:
            self.decoder(x)

        def guide(self, x: Tensor) -> None:
            self.encoder(x * self.gain)

    def pair() -> Pair:
        return Pair(Net(3.0).model, Net(0.5).guide)

    check_resumed(pair, observations(40), tmp_path, monkeypatch, after=(4,))


def test_who_is_refused_keeps_the_weights(tmp_path: Path) -> None:
    fitted(PAIRS["normal"], observations(40), tmp_path / "state", epochs=1)
    pair = Pair(Tempered(), Encoder())
    before = [parameter.detach().clone() for parameter in pair.model.parameters()]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="this pair has a loss of"):
        fit(pair.model, pair.guide, observations(40), **options_of(tmp_path / "state"))
    now = pair.model.parameters()  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_bad_steps_are_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad step before the interruption and two after it are three in a row."""
    data = observations(48)
    by_pyro, taken = EagerSteps.by_pyro, itertools.count()

    def bad_from_the_fifth(steps: EagerSteps, batch: Any) -> Any:
        loss, *rest = by_pyro(steps, batch)
        return (loss * torch.nan if next(taken) >= 4 else loss, *rest)

    monkeypatch.setattr(EagerSteps, "by_pyro", bad_from_the_fifth)
    interrupted(PAIRS["normal"], data, tmp_path / "state", 5, monkeypatch, engine="eager")
    with pytest.raises(NonFiniteError, match="step 7: "):
        fitted(PAIRS["normal"], data, tmp_path / "state", engine="eager")


class TestWriting:
    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is a folder; give the name of a file in it"):
            fitted(PAIRS["normal"], observations(40), tmp_path)

    @pytest.mark.parametrize("checkpoint", [3, True, {"path": "a"}])
    def test_what_is_no_checkpoint(self, checkpoint: Any) -> None:
        pair = PAIRS["normal"]()
        with pytest.raises(TypeError, match=f"checkpoint is an? {type(checkpoint).__name__}; give the path"):
            fit(pair.model, pair.guide, observations(40), checkpoint=checkpoint)

    @pytest.mark.parametrize("seconds", [-1, float("nan"), "1", True, None])
    def test_what_is_no_interval(self, seconds: Any) -> None:
        with pytest.raises(ValueError, match=r"seconds is .*; give a number of at least 0"):
            Checkpoint("state", seconds)

    def test_a_full_disk_is_told_and_the_fit_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = fitted(seeded(PAIRS["normal"], 0), observations(40))
        real, calls = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls > 8:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with caplog.at_level(logging.WARNING):
            result = fitted(seeded(PAIRS["normal"], 0), observations(40), tmp_path / "state")
        assert_equal_bits(result, whole)
        assert "could not be written, and it goes on: [Errno 28] No space left on device" in caplog.text
        monkeypatch.setattr(os, "fsync", real)
        assert [path.name for path in tmp_path.iterdir()] == ["state"]
        assert_equal_bits(fitted(seeded(PAIRS["normal"], 1), observations(40), tmp_path / "state"), whole)

    def test_a_disk_that_is_full_from_the_start_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"No space left on device: .*state"):
            fitted(PAIRS["normal"], observations(40), tmp_path / "state")
        assert list(tmp_path.iterdir()) == []

    def test_what_is_no_data_is_refused_at_the_start(self, tmp_path: Path) -> None:
        class Odd(Softening):
            def state_dict(self) -> dict[str, Any]:
                return {"file": object()}

        with pytest.raises(
            TypeError, match=r"the state\['callbacks'\]\[0\]\['file'\] is a object, which cannot"
        ):
            fitted(PAIRS["normal"], observations(40), tmp_path / "state", callbacks=[Odd(Remembering())])

    def test_two_fits_cannot_share_a_checkpoint(self, tmp_path: Path) -> None:
        def again(_record: EpochRecord) -> None:
            fitted(PAIRS["normal"], observations(40), tmp_path / "state")

        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}.* is writing there"):
            fitted(PAIRS["normal"], observations(40), tmp_path / "state", callbacks=[again])

    def test_a_newer_checkpoint_is_refused_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_bytes(pack({"schema": 2}, "state"))
        with pytest.raises(ValueError, match=r"has schema 2, and this version .* update pyro-vae to read it"):
            fitted(PAIRS["normal"], observations(40), tmp_path / "state")
