"""When a loss is captured, when a captured one is believed, and what is said where it cannot be."""

import logging
import time
from collections import Counter
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.graphs.guards import COMPARED, Guard, is_liftable
from pyro_vae.graphs.places import blamed
from pyro_vae.graphs.reading import DependsOnValuesError
from pyro_vae.pairs.telling import UNINITIALIZED, told_better
from pyro_vae.svi.pyro_svi.comparison import Streams, agrees, draws_elsewhere, from_state
from pyro_vae.svi.pyro_svi.entries import Entry, Loss, Outcome, make_entry
from pyro_vae.svi.pyro_svi.signatures import Call, UnknownArgumentError, take_apart
from pyro_vae.svi.pyro_svi.watching import loss_and_parameters, validation

logger = logging.getLogger("pyro_vae.svi")

FIRST_SIGHTS, MOST_SIGHTS = 2, 64
"""A signature is captured when it is seen for the second time, and each further one after twice as many:
where every batch has a shape of its own, to capture would take longer than to run."""
MOST_GRAPHS, MOST_OF_ONE_KIND = 64, 8
MOST_STEPS_BETWEEN_COMPARISONS = 1000
FAILURES_TO_GIVE_UP = 3
_ARGUMENTS = "a float among the arguments"
_CHANGES_ARGUMENTS = "it changes its arguments whenever it runs"


class Evaluation(NamedTuple):
    """One evaluation of a loss."""

    outcome: Outcome
    parameters: list[Tensor]
    entry: Entry | None
    """The captured loss that it came from; None for Pyro."""


class CapturedLoss:
    """A loss of a pair: Pyro's own at first, and then its graph, compared with Pyro ever more rarely.

    Parameters
    ----------
    loss
        ``loss(model, guide, *args, **kwargs)`` in Pyro's sense.
    model, guide
        The pair.
    gradients
        Whether the loss calls ``backward``.
    """

    def __init__(self, loss: Loss, model: Any, guide: Any, *, gradients: bool) -> None:
        self.loss, self.model, self.guide, self.gradients = loss, model, guide, gradients
        self.entries: dict[Any, list[Entry]] = {}
        self.eager: dict[Any, str] = {}
        """Why calls of a signature are left to Pyro."""
        self.reasons: list[str] = []
        self._given_up = False
        self._sights: Counter[Any] = Counter()
        self._failures: Counter[Any] = Counter()
        self._floats: dict[Any, list[float]] = {}
        self._lifted: dict[Any, frozenset[str]] = {}
        self._stubborn: dict[Any, frozenset[str]] = {}
        self._ignored: frozenset[str] = frozenset()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        """One evaluation."""
        call = self._taken_apart(args, kwargs)
        if call is None:
            return self._by_pyro(args, kwargs)
        entry = next((entry for entry in self.entries.get(call.signature, ()) if entry.fits(call)), None)
        if entry is None:
            return self._without_graph(call, args, kwargs)
        entry.replays += 1
        if entry.replays >= entry.next_comparison:
            return self._compared(entry, call, args, kwargs)
        before = Streams()
        outcome = entry.replay(call)
        if outcome.is_finite:
            return Evaluation(outcome, entry.parameters, entry)
        before.restore()  # Pyro warns of it, or refuses
        return self._by_pyro(args, kwargs)

    def _taken_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if self._given_up:
            return None
        try:
            call = take_apart(args, kwargs)
        except UnknownArgumentError as error:
            self._say(str(error))
            return None
        call = call._replace(signature=(*call.signature, *validation(), torch.get_default_dtype()))
        return None if call.signature in self.eager else call

    def _by_pyro(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        value, parameters = loss_and_parameters(lambda: self._run(*args, **kwargs))
        return Evaluation(Outcome(value, [p.grad for p in parameters]), parameters, None)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.loss(self.model, self.guide, *args, **kwargs)
        except (ValueError, RuntimeError) as error:
            if UNINITIALIZED in str(error):
                raise ValueError(told_better(error, self.model, self.guide)) from error
            raise

    def _without_graph(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        """Pyro's own evaluation, from which a graph is made when its time has come."""
        key = call.signature
        self._sights[key] += 1
        seen = self._floats.setdefault(key, call.floats)
        if key not in self.entries:
            if self._sights[key] < min(FIRST_SIGHTS * 2 ** len(self.entries), MOST_SIGHTS):
                return self._by_pyro(args, kwargs)
            self.entries[key] = []
        entries = self.entries[key]
        changed = {place.name: place for entry in entries for place in entry.guard.changed()}
        if len(entries) == MOST_OF_ONE_KIND or sum(map(len, self.entries.values())) >= MOST_GRAPHS:
            what = ", ".join(sorted(changed)[:3]) or _ARGUMENTS
            self._leave_to_pyro(key, f"{what} changes too often")
            return self._by_pyro(args, kwargs)
        liftable = {name for name, place in changed.items() if is_liftable(place)}
        if call.floats != seen:
            liftable.add(_ARGUMENTS)
        lifted = self._lifted.get(key, frozenset()) | liftable
        self._lifted[key] = lifted - self._stubborn.get(key, frozenset())
        return self._captured(call, args, kwargs)

    def _captured(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        key = call.signature
        guard = self._guard(call)
        before, buffers = Streams(), [buffer.clone() for buffer in guard.buffers]
        reason = _own_effects(guard)
        evaluation, changes_arguments = self._watched(call, args, kwargs)
        why, ignored = reason()
        if why is None and changes_arguments:
            why = _CHANGES_ARGUMENTS
        self._ignored |= ignored
        if why is not None:
            self._leave_to_pyro(key, why)
            return evaluation
        started = time.perf_counter()
        after = Streams()
        guard = self._guard(call)
        try:
            with from_state(before, guard.buffers, buffers):
                entry = make_entry(
                    self._run,
                    args,
                    kwargs,
                    call,
                    evaluation.parameters,
                    guard,
                    lifts_floats=_ARGUMENTS in self._lifted[key],
                    gradients=self.gradients,
                )
            if not self._equals_pyro(entry, call, evaluation, (before, buffers, after)):
                raise ValueError("its graph and Pyro give different numbers from the same seed")
        except Exception as error:  # whatever a user's program does that a tracer cannot follow
            self._note_failure(key, error)
            return evaluation
        self.entries[key].insert(0, entry)
        logger.info(
            "a step was captured in %.1f s and is replayed from now on", time.perf_counter() - started
        )
        return evaluation

    def _watched(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Evaluation, bool]:
        """Pyro's own evaluation, and whether the arguments are then no longer what they were."""
        versions = [_version(tensor) for tensor in call.tensors]
        evaluation = self._by_pyro(args, kwargs)
        now = self._taken_apart(args, kwargs)
        if now is None or (now.signature, now.floats) != (call.signature, call.floats):
            return evaluation, True
        same = all(new is old for new, old in zip(now.tensors, call.tensors, strict=True))
        return evaluation, not same or [_version(tensor) for tensor in call.tensors] != versions

    def _guard(self, call: Call) -> Guard:
        roots = [self.model, self.guide, self.loss, *call.programs]
        return Guard(roots, lifted=self._lifted[call.signature], ignored=self._ignored)

    def _equals_pyro(
        self,
        entry: Entry,
        call: Call,
        evaluation: Evaluation,
        state: tuple[Streams, list[Tensor], Streams],
    ) -> bool:
        """Whether the graph gives Pyro's numbers and leaves the streams where Pyro left them."""
        before, buffers, after = state
        with from_state(before, entry.guard.buffers, buffers):
            outcome = entry.replay(call)
            return Streams().equals(after) and agrees(outcome, evaluation.outcome)

    def _compared(
        self, entry: Entry, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Evaluation:
        """Pyro's own evaluation, and whether the graph would have given the same."""
        entry.next_comparison += min(entry.replays, MOST_STEPS_BETWEEN_COMPARISONS)
        before, buffers = Streams(), [buffer.clone() for buffer in entry.guard.buffers]
        evaluation, changes_arguments = self._watched(call, args, kwargs)
        if changes_arguments:
            self._leave_to_pyro(call.signature, _CHANGES_ARGUMENTS)
            return evaluation
        asked = {id(p) for p in evaluation.parameters} == {id(p) for p in entry.parameters}
        state = before, buffers, Streams()
        ordered = Evaluation(Outcome(evaluation.outcome.loss, [p.grad for p in entry.parameters]), [], None)
        if not asked or not self._equals_pyro(entry, call, ordered, state):
            key, reason = call.signature, "the captured step no longer gives the numbers that Pyro gives"
            self.entries[key].remove(entry)
            self._failures[key] += 1
            if self._failures[key] == FAILURES_TO_GIVE_UP:
                self._leave_to_pyro(key, reason)
            else:
                logger.info("%s, and is captured again", reason)
        return evaluation

    def _note_failure(self, key: Any, error: Exception) -> None:
        if self._lifted[key]:  # once more, with the values as they are
            self._stubborn[key] = self._stubborn.get(key, frozenset()) | self._lifted[key]
            self._lifted[key] = frozenset()
            return
        line = None if isinstance(error, DependsOnValuesError) else blamed(error)
        first = str(error).strip().split("\n")[0]
        self._leave_to_pyro(key, f"{first} ({line})" if line else first)

    def _leave_to_pyro(self, key: Any, reason: str) -> None:
        self.eager[key] = reason
        self.entries.pop(key, None)
        self._given_up = not self.entries and len(self.eager) >= FAILURES_TO_GIVE_UP
        self._say(reason)

    def _say(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
            logger.warning("SVI runs this program by Pyro at every step: %s", reason)


class _Effects(NamedTuple):
    why: str | None
    ignored: frozenset[str]


def _own_effects(guard: Guard) -> Any:
    """What says what the program has changed around itself since."""
    elsewhere = draws_elsewhere()
    tensors = [p for p in guard.places if torch.is_tensor(p.value) and not _may_change(p)]
    versions = [_version(p.value) for p in tensors]
    known = dict(pyro.get_param_store().named_parameters())

    def since() -> _Effects:
        if guard.unseen:
            return _Effects(guard.unseen[0], frozenset())
        if (drawn := elsewhere()) is not None:
            return _Effects(drawn, frozenset())
        changed = guard.changed()
        for place in changed:
            if place.key is len or isinstance(place.value, COMPARED):
                return _Effects(f"it changes {place.name} whenever it runs", frozenset())
        for place, version in zip(tensors, versions, strict=True):
            if _version(place.value) != version:
                return _Effects(f"it changes the tensor {place.name} in place whenever it runs", frozenset())
        now = pyro.get_param_store().named_parameters()
        for name, parameter in now:
            if name in known and known[name] is not parameter:
                return _Effects(f"it sets the parameter {name!r} whenever it runs", frozenset())
        return _Effects(None, frozenset(place.name for place in changed))

    return since


def _may_change(place: Any) -> bool:
    return place.is_buffer or bool(place.value.requires_grad)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
