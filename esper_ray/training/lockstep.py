"""Batched execution of the work of several hosts: as one network where their structure agrees."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from torch import nn

from esper_ray.models.blueprints import seed_factory
from esper_ray.models.joined import JoinedModel, JoinedSeeds, can_be_joined
from esper_ray.training.joint import evaluate_batched, optimizer_settings, owners, train_batched
from esper_ray.training.work import EvaluationWork, Steps, TrainingWork, Work, do

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_Module = TypeVar("_Module")


def run_batched(hosts: Sequence[Steps[Result]]) -> list[Result | Exception]:
    """Runs the coroutines of several hosts together, and returns the result or the exception of each."""
    results: dict[int, Result | Exception] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(hosts)))
    while answers:
        works: dict[int, Work] = {}
        for place, answer in answers.items():
            steps = hosts[place]
            try:
                works[place] = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
            except StopIteration as end:
                results[place] = end.value
            except Exception as error:
                results[place] = error
        answers = dict(zip(works, do_batched(list(works.values())), strict=True))
    return [results[place] for place in range(len(hosts))]


def do_batched(works: Sequence[Work]) -> list[Any]:
    """Does pieces of work of several hosts, together where their structure agrees.

    Returns:
        the result of each, in the same order, or the exception that it raised.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, work in enumerate(works):
        kind = _kind_of_host(work) if len(works) > 1 and _can_be_joined(work) else place
        groups.setdefault(kind, []).append(place)
    results: list[Any] = [None] * len(works)
    for places in groups.values():
        kinds = {place: _kind_of_seed(works[place]) if len(places) > 1 else None for place in places}
        places.sort(key=lambda place: repr(kinds[place]))
        found = _do_group([works[place] for place in places], [kinds[place] for place in places])
        for place, result in zip(places, found, strict=True):
            results[place] = result
    return results


def _do_group(works: Sequence[Work], kinds: Sequence[Hashable]) -> list[Any]:
    """Does works whose hosts are of one kind, those with seeds of one kind side by side."""
    if len(works) > 1:
        try:
            return _do_joined(works, kinds)
        except FloatingPointError:
            pass  # one by one the others are none the worse for it, and that one stops where it has to
        except Exception as error:
            logger.warning("%d hosts are trained one by one: together they raise %r", len(works), error)
    return [_do_one(work) for work in works]


def _do_one(work: Work) -> Any:
    try:
        return do(work)
    except Exception as error:
        return error


def _do_joined(works: Sequence[Any], kinds: Sequence[Hashable]) -> list[Any]:
    evaluates = isinstance(works[0], EvaluationWork)
    models = [work.model for work in works]
    for each in models:
        each.train(not evaluates)
    model = _joined((_structure(works[0]), len(works)), partial(JoinedModel, models[0], len(works)))
    with ExitStack() as stack:
        for work in works:
            if evaluates and work.forced_alpha is not None:
                stack.enter_context(work.model.seed_slot.force_alpha(work.forced_alpha))
        model.attach(models, _joined_seeds(works, kinds))
    try:
        return evaluate_batched(model, works) if evaluates else train_batched(model, works)
    finally:
        model.release()


def _joined_seeds(works: Sequence[Work], kinds: Sequence[Hashable]) -> list[JoinedSeeds]:
    """Returns the joined seeds of each kind but None, in the order in which they come."""
    alike = Counter[Hashable]()
    seeds = []
    for kind in dict.fromkeys(kinds):
        if kind is not None:
            those = [work for work, its in zip(works, kinds, strict=True) if its == kind]
            key = _structure(those[0]), _seed_structure(those[0]), len(those)
            alike[key] += 1  # two kinds may differ in nothing but how far their optimizers are
            seeds.append(_joined((*key, alike[key]), partial(JoinedSeeds, those[0].model.seed_slot, len(those))))
    return seeds


# --- what can be one network -----------------------------------------------------------------------------------------

_JOINED: dict[Hashable, Any] = {}
"""Networks that a thread has joined, by thread and what they consist of. Their weights are those of the last use."""
_MOST_JOINED = 256
_CAN_BE_JOINED: dict[Hashable, bool] = {}


def _joined(key: Hashable, build: Callable[[], _Module]) -> _Module:
    key = threading.get_ident(), key
    module: _Module | None = _JOINED.get(key)
    if module is None:
        if len(_JOINED) >= _MOST_JOINED:
            _JOINED.clear()
        module = _JOINED[key] = build()
    return module


def _can_be_joined(work: Work) -> bool:
    key = _structure(work), _seed_structure(work)
    if key not in _CAN_BE_JOINED:
        _CAN_BE_JOINED[key] = work.task_type == "classification" and can_be_joined(work.model, work.loader.input_shape)
    return _CAN_BE_JOINED[key]


def _structure(work: Work) -> Hashable:
    """Returns a key for the structure of a host without its seed, and for its device."""
    return work.structure, str(work.device)


def _seed_structure(work: Work) -> Hashable:
    """Returns a key for the structure of a seed; None without one. A blueprint may be defined anew under its name."""
    blueprint = _blueprint(work)
    return None if blueprint is None else (blueprint, seed_factory(blueprint, work.model.seed_slot.topology))


def _blueprint(work: Work) -> str | None:
    slot = work.model.seed_slot
    return slot.state.blueprint_id if slot.seed is not None and slot.state is not None else None


def _kind_of_host(work: Work) -> Hashable:
    """Returns a key that agrees for two hosts that can be joined into one network, whatever seeds they have."""
    common = (type(work), _structure(work), work.task_type, len(work.loader), work.loader.samples)
    if isinstance(work, EvaluationWork):
        return common
    return *common, _optimized(work, work.model.get_host_parameters())


def _kind_of_seed(work: Work) -> Hashable:
    """Returns a key that agrees for two seeds that can be joined into one module; None without a seed."""
    blueprint = _blueprint(work)
    if blueprint is None or isinstance(work, EvaluationWork):
        return blueprint
    return blueprint, _optimized(work, work.model.get_seed_parameters())


def _optimized(work: TrainingWork, parameters: Iterable[nn.Parameter]) -> Hashable:
    """Returns how each of the parameters is trained."""
    owned_by = owners(work)
    found = []
    for parameter in parameters:
        optimizer, group = owned_by.get(id(parameter), (None, {}))
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        step = float(state["step"]) if "step" in state else None
        known = tuple(key for key, value in state.items() if value is not None)
        found.append((parameter.requires_grad, repr(optimizer_settings(group)), known, step))
    return tuple(found)
