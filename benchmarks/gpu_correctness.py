"""Correctness of a GPU in `gpu_check.py`: its numbers held against the CPU's, and whether an epoch waits for it."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gpu_inputs import Check, Row, long_runs
from torch import Tensor, nn

from esper_ray.data import TokenLoader
from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.rollout import play_episode
from esper_ray.lifecycle import SeedStage
from esper_ray.models import MorphogeneticModel, list_blueprints
from esper_ray.models.joined import can_be_joined
from esper_ray.numerics import as_actor
from esper_ray.policies import HeuristicPolicy
from esper_ray.seeding import seeded
from esper_ray.tasks import TaskSpec, create_model, get_task_spec, load_task_data
from esper_ray.training import _train_one_epoch, adopt_seed, build_optimizer, evaluate
from esper_ray.training.lockstep import run_batched

S = SeedStage
STAGES = {
    "no seed": None,
    "germinated": S.GERMINATED,
    "training": S.TRAINING,
    "blending": S.BLENDING,
    "shadowing": S.SHADOWING,
    "probationary": S.PROBATIONARY,
    "fossilized": S.FOSSILIZED,
}
"""The six stage cases; shadowing and probationary are one case in two stages."""
RELATIVE, ABSOLUTE = 1e-3, 1e-5
"""Largest differences of float32 numbers of two devices after a few steps, products in full precision."""


class WrongNumbersError(Exception):
    """The device computes something else than it should. Holds what was measured."""

    def __init__(self, message: str, rows: list[Row]) -> None:
        super().__init__(message)
        self.rows = rows


# --- is it right -----------------------------------------------------------------------------------------------------


def stages(check: Check) -> list[Row]:
    """Trains and evaluates for an epoch on the CPU and on the device, in each stage, with each blueprint.

    Raises:
        WrongNumbersError: losses, weights or gradient statistics are further apart than rounding explains.
    """
    task = check.digits()
    width = create_model(task).seed_slot.width
    blueprints = [blueprint.blueprint_id for blueprint in list_blueprints("cnn", width, check.device)]
    if check.small:
        blueprints = blueprints[-1:]
    rows = []
    with full_precision():
        for name, stage in STAGES.items():
            for blueprint in blueprints if stage else [None]:
                ways = [_epoch_in(task, stage, blueprint, device) for device in (torch.device("cpu"), check.device)]
                rows.append({"case": name, "blueprint": blueprint, **_distance(*ways)})
        rows.append({"case": "a text", "blueprint": "mlp", **_distance(*_text_epochs(check.device))})
    return _right(rows, "further from the CPU than rounding explains")


def _epoch_in(task: TaskSpec, stage: SeedStage | None, blueprint: str | None, device: torch.device) -> list[Tensor]:
    """Returns losses, gradient statistics, weights and buffers after an epoch in a stage, and an evaluation."""
    with seeded(3):
        model = create_model(task)
        if blueprint is not None:
            model.germinate_seed(blueprint, "seed")
    model.to(device)
    host = build_optimizer(model.get_host_parameters(), task.host_optimizer)
    _walk_to(model, stage)
    if stage == S.GERMINATED:
        assert model.seed_slot.advance_stage(S.TRAINING).passed
    seed = None
    if blueprint is not None:
        seed = build_optimizer(model.get_seed_parameters(), task.seed_optimizer)
    if seed is not None and stage == S.FOSSILIZED:
        adopt_seed(host, seed)
        seed = None
    data = load_task_data(task, device)
    return _trained(model, data.train, data.validation, host, seed, task.task_type)


def _walk_to(model: MorphogeneticModel, stage: SeedStage | None) -> None:
    """Walks the seed to a stage with every gate passing."""
    state = model.seed_state
    for target in (S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY, S.FOSSILIZED) if state else ():
        assert state is not None
        if state.stage == stage:
            break
        state.epochs_in_stage, state.gradient_ratio, state.contribution, state.gradient_health = 9, 1.0, 1.0, 1.0
        if target == S.SHADOWING:
            state.alpha = 1.0
        assert model.seed_slot.advance_stage(target).passed


def _trained(
    model: MorphogeneticModel,
    train: Iterable[Any],
    validation: Iterable[Any],
    host: torch.optim.Optimizer,
    seed: torch.optim.Optimizer | None,
    task_type: str,
) -> list[Tensor]:
    device = next(model.parameters()).device
    criterion, live = nn.CrossEntropyLoss(), seed is not None
    with seeded(5, device):
        loss, _, _, stats = _train_one_epoch(model, train, criterion, host, seed, device, task_type, live)
    found = evaluate(model, validation, criterion, device, task_type)
    numbers = [loss, found.loss, found.loss_without_seed, *(float(value) for value in (stats or {}).values())]
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return [torch.tensor(numbers), *(tensor.detach().cpu() for tensor in tensors)]


def _text_epochs(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what an epoch of a transformer on made-up GPT-2 tokens comes to, on the CPU and on the device."""
    small = {"host.layers": 2, "host.heads": 2, "host.width": 64, "host.dropout": 0.0, "data.sequence_length": 32}
    task = get_task_spec("tinystories", small)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 50_257, 16 * 33).astype(np.uint16))
    ways = []
    for place in (torch.device("cpu"), device):
        with seeded(3):
            model = create_model(task.model_copy(update={"classes": 50_257}))
            model.germinate_seed("mlp", "seed")
        model.to(place)
        _walk_to(model, S.TRAINING)
        optimizers = (
            build_optimizer(model.get_host_parameters(), task.host_optimizer),
            build_optimizer(model.get_seed_parameters(), task.seed_optimizer),
        )
        train, validation = TokenLoader(tokens, 32, 4, place, shuffle=True), TokenLoader(tokens, 32, 4, place)
        # AdamW divides by the size of a gradient: where that is nought, rounding alone decides, so losses only.
        ways.append(_trained(model, train, validation, *optimizers, task.task_type)[:1])
    return ways[0], ways[1]


def _distance(expected: list[Tensor], found: list[Tensor]) -> Row:
    """Returns the largest difference, in units of what is allowed."""
    shares = [
        ((b - a).abs() / (ABSOLUTE + RELATIVE * a.abs().max())).max().item() if a.numel() else 0.0
        for a, b in zip(expected, found, strict=True)
    ]
    return {"of_tolerance": max(shares), "right": max(shares) <= 1.0}


@contextmanager
def full_precision() -> Iterator[None]:
    """Has products of float32 done in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def _right(rows: list[Row], else_what: str) -> list[Row]:
    wrong = [row for row in rows if not row["right"]]
    if wrong:
        names = ", ".join(" ".join(str(row[key]) for key in ("case", "blueprint") if row.get(key)) for row in wrong)
        raise WrongNumbersError(f"{else_what}: {names}", rows)
    return rows


def incubation(check: Check) -> list[Row]:
    """Compares the host's gradients with an incubating seed to those without one, both on the device.

    Raises:
        WrongNumbersError: they differ by more than the device differs from itself.
    """
    task, rows = check.digits(), []
    inputs, targets = next(iter(load_task_data(task, check.device).train))

    def gradients(blueprint: str | None) -> list[Tensor]:
        with seeded(3):
            model = create_model(task)
            if blueprint is not None:
                model.germinate_seed(blueprint, "seed")
                assert model.seed_slot.advance_stage(S.TRAINING).passed
        model.to(check.device).train()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        return [parameter.grad for parameter in model.get_host_parameters() if parameter.grad is not None]

    def apart(a: list[Tensor], b: list[Tensor]) -> float:
        return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))

    with as_actor(1):
        bare = gradients(None)
        noise = max(apart(bare, gradients(None)) for _ in range(3))
        for blueprint in list_blueprints("cnn", create_model(task).seed_slot.width, check.device):
            difference = apart(bare, gradients(blueprint.blueprint_id))
            rows.append(
                {
                    **{"blueprint": blueprint.blueprint_id, "difference": difference, "of_repetition": noise},
                    **{"bit_exact": difference == 0.0, "right": difference <= 10 * noise},
                }
            )
    return _right(rows, "an incubating seed changes the host's gradients")


def episode(check: Check) -> list[Row]:
    """Plays an episode twice, and once more with its state saved and restored in every fifth epoch.

    Raises:
        WrongNumbersError: they differ.
    """
    task = get_task_spec("digits", {"data.train_samples": 128 if check.small else 256, "max_epochs": 15})
    env = MorphogenesisEnv(task, check.device)
    policy = HeuristicPolicy.of(task, env.action_table)

    def restored(env: MorphogenesisEnv, _action: int) -> None:
        if env.run.epoch % 5 == 0 and not env.run.is_over and (state := env.state()) is not None:
            env.restore(state)

    with as_actor(1):
        records = [play_episode(env, policy, 1, observer).as_row() for observer in (None, None, restored)]
    first, again, saved = ({**record, "seconds": None} for record in records)
    accuracy = first["kept_val_accuracy"]
    rows = [
        {"case": "played again", "kept_val_accuracy": accuracy, "right": first == again},
        {"case": "restored", "kept_val_accuracy": accuracy, "right": first == saved},
    ]
    return _right(rows, "an episode does not come out the same")


def lockstep(check: Check) -> list[Row]:
    """Trains hosts for two epochs in lockstep and one by one, both on the device.

    Raises:
        WrongNumbersError: validation losses differ by more than rounding explains.
    """
    task = check.digits()
    with full_precision():
        together, alone = (long_runs(task, check.device, 4) for _ in range(2))
        for _ in range(2):
            losses = [report.outcome.val_loss for report in run_batched([run.epoch_steps() for run in together])]
            expected = [run.train_epoch().outcome.val_loss for run in alone]
    distance = max(abs(a - b) / a for a, b in zip(expected, losses, strict=True))
    found = {"case": "4 hosts", "relative_difference": distance, "right": distance <= RELATIVE}
    joined = can_be_joined(together[0].model, task.input_shape)
    return _right([{**found, "as_one_network": joined}], "hosts in lockstep learn something else than one by one")


# --- does anything wait ----------------------------------------------------------------------------------------------


class _Watched:
    """Batches of a loader; whatever waits for the GPU between the first and the last of them raises."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        first = next(batches)
        with sync_debug_mode("error"):
            yield first
            yield from batches


@contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    """Sets what torch does inside the context where something waits for the GPU."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def synchronises(check: Check) -> list[Row]:
    """Says whether anything waits for the GPU inside an epoch, and how often the whole epoch does.

    In the whole epoch the sums are read once, and the gradient statistics of seed and host once each.
    """
    if not check.on_gpu:
        return [{"case": "on a CPU nothing waits", "synchronises": None}]
    images = get_task_spec("weak_cnn", {"data.train_samples": 8 * 128})
    cases = [(check.digits(), stage) for stage in (None, S.TRAINING, S.BLENDING)] + [(images, None)]
    return [_waits(task, stage, check.device) for task, stage in cases] + [_waits_in_lockstep(check)]


def _waits(task: TaskSpec, stage: SeedStage | None, device: torch.device) -> Row:
    data = load_task_data(task, device)
    model = create_model(task, device)
    host, seed = build_optimizer(model.get_host_parameters(), task.host_optimizer), None
    if stage is not None:
        model.germinate_seed("conv_heavy", "seed")
        _walk_to(model, stage)
        seed = build_optimizer(model.get_seed_parameters(), task.seed_optimizer)

    def epoch(batches: Iterable[Any]) -> None:
        _train_one_epoch(model, batches, nn.CrossEntropyLoss(), host, seed, device, task.task_type, seed is not None)

    epoch(data.train)
    message = None
    try:
        epoch(_Watched(data.train))
    except RuntimeError as error:
        message = " ".join(str(error).split())
    finally:
        torch.cuda.set_sync_debug_mode("default")  # the watched batches are given up only later
    name = f"{task.name}, {stage.name.lower() if stage else 'no seed'}"
    waits = _count_waits(lambda: epoch(data.train))
    return {"case": name, "synchronises": message is not None, "message": message, "waits_in_the_epoch": waits}


def _waits_in_lockstep(check: Check) -> Row:
    """Compares an epoch with one of twice as many batches: what waits in each batch then waits twice as often."""
    counts = []
    for samples in (256, 512):
        runs = long_runs(get_task_spec("digits", {"data.train_samples": samples}), check.device, 4)
        run_batched([run.epoch_steps() for run in runs])
        counts.append(_count_waits(lambda runs=runs: run_batched([run.epoch_steps() for run in runs])))
    return {
        "case": "digits, 4 hosts in lockstep",
        "synchronises": counts[0] != counts[1],
        "message": None,
        "waits_in_the_epoch": counts[0],
    }


def _count_waits(work: Callable[[], Any]) -> int:
    with warnings.catch_warnings(record=True) as caught, sync_debug_mode("warn"):
        warnings.simplefilter("always")
        work()
    return sum("synchroniz" in str(warning.message) for warning in caught)
