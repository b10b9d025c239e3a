"""What the slot computes, and how it moves a seed through its life."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper_ray.errors import ConfigurationError, LifecycleError
from esper_ray.lifecycle import LifecycleSettings, SeedStage
from esper_ray.models import CNNHost, MorphogeneticModel, blueprint, list_blueprints
from esper_ray.models.blueprints import _REGISTRY

S = SeedStage
BLUEPRINTS = [b.blueprint_id for b in list_blueprints("cnn", 8)]
QUICK = LifecycleSettings(training_dwell=2, blending_steps=3, shadowing_dwell=1, embargo_epochs=2).resolved(25)


def make_model(channels_last: bool = True, blocks: int = 2, slot: str | None = None) -> MorphogeneticModel:
    torch.manual_seed(0)
    host = CNNHost((1, 8, 8), 10, base_channels=4, blocks=blocks)
    return MorphogeneticModel(host, slot, QUICK, channels_last=channels_last)


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def host_gradients(model: MorphogeneticModel) -> list[Tensor]:
    inputs, targets = batch()
    model.train()
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    return [p.grad.clone() for p in model.get_host_parameters() if p.grad is not None]


def grown(blueprint_id: str, stage: SeedStage, **settings: bool) -> MorphogeneticModel:
    """A model whose seed has been walked to `stage` with every gate passing."""
    model = make_model(**settings)
    model.germinate_seed(blueprint_id, "s")
    state = model.seed_state
    assert state is not None
    for target in (S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY, S.FOSSILIZED):
        if state.stage == stage:
            break
        state.epochs_in_stage, state.gradient_ratio, state.contribution, state.gradient_health = 9, 1.0, 1.0, 1.0
        if target == S.SHADOWING:
            state.alpha = 1.0
        assert model.seed_slot.advance_stage(target).passed
    return model


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("slot", ["block1_post", "block2_post"])
@pytest.mark.parametrize("blueprint_id", BLUEPRINTS)
def test_in_incubation_host_gradients_and_outputs_are_bit_identical_to_a_run_without_the_seed(
    blueprint_id: str, slot: str, channels_last: bool
) -> None:
    bare, seeded = make_model(channels_last, slot=slot), make_model(channels_last, slot=slot)
    seeded.germinate_seed(blueprint_id, "s")
    assert seeded.seed_slot.advance_stage(S.TRAINING).passed
    assert torch.equal(bare(batch()[0]), seeded(batch()[0]))
    for expected, found in zip(host_gradients(bare), host_gradients(seeded), strict=True):
        assert torch.equal(expected, found)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in seeded.get_seed_parameters())
    assert not seeded.seed_slot.isolation_violated()


def test_the_host_stays_untouched_when_an_incubating_seed_overflows() -> None:
    bare, seeded = make_model(), make_model()
    seeded.germinate_seed("conv_light", "s")
    seeded.seed_slot.advance_stage(S.TRAINING)
    with torch.no_grad():
        for parameter in seeded.get_seed_parameters():
            parameter.fill_(float("inf"))
    assert torch.equal(bare(batch()[0]), seeded(batch()[0]))


def test_a_seed_that_leaks_into_the_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the straight-through estimator taken away, the seed's gradient reaches the host."""
    model = make_model()
    model.germinate_seed("conv_light", "s")
    model.seed_slot.advance_stage(S.TRAINING)
    monkeypatch.setattr("esper_ray.models.slot.straight_through", lambda host, seed: host + 0.5 * seed * host)
    host_gradients(model)
    assert model.seed_slot.isolation_violated()


@pytest.mark.parametrize("blueprint_id", BLUEPRINTS)
def test_blending_mixes_host_and_seed_and_leads_gradients_along_both_paths(blueprint_id: str) -> None:
    slot = grown(blueprint_id, S.BLENDING).seed_slot
    assert slot.state is not None
    assert slot.seed is not None
    slot.state.alpha = 0.25
    features = torch.randn(3, 8, 4, 4, requires_grad=True)
    expected = 0.75 * features + 0.25 * slot.seed(features)
    assert torch.allclose(slot(features), expected, atol=1e-6)
    (through_seed,) = torch.autograd.grad(slot.seed(features).sum(), features)
    (through_slot,) = torch.autograd.grad(slot(features).sum(), features)
    assert torch.allclose(through_slot, 0.75 + 0.25 * through_seed, atol=1e-5)


def test_an_empty_slot_and_a_culled_one_are_the_identity() -> None:
    model = make_model()
    features = torch.randn(2, 8, 4, 4)
    assert model.seed_slot(features) is features
    model.germinate_seed("conv_heavy", "s")
    assert model.cull_seed().passed
    assert model.seed_slot(features) is features
    assert model.get_seed_parameters() == []


def test_forced_alpha_holds_inside_the_context_only() -> None:
    model = grown("conv_heavy", S.PROBATIONARY).eval()
    inputs, _ = batch()
    grown_output = model(inputs)
    with model.seed_slot.force_alpha(0.0):
        assert model.seed_slot.alpha == 0.0
        without = model(inputs)
    assert torch.equal(model(inputs), grown_output)
    model_without_seed = make_model().eval()
    assert torch.equal(without, model_without_seed(inputs))
    with pytest.raises(LifecycleError, match="between 0 and 1"), model.seed_slot.force_alpha(1.5):
        pass


@pytest.mark.parametrize("stage", [S.BLENDING, S.PROBATIONARY, S.FOSSILIZED])
def test_the_counterfactual_in_one_pass_equals_two_passes(stage: SeedStage) -> None:
    model = grown("conv_light", stage).eval()
    inputs, _ = batch()
    with_seed, without_seed = model.forward_with_counterfactual(inputs)
    assert torch.allclose(with_seed, model(inputs), atol=1e-5)
    with model.seed_slot.force_alpha(0.0):
        assert torch.allclose(without_seed, model(inputs), atol=1e-5)
    assert not torch.allclose(with_seed, without_seed, atol=1e-3)


def test_the_counterfactual_runs_the_layers_before_the_slot_once() -> None:
    model = grown("conv_light", S.PROBATIONARY).eval()
    model.forward_with_counterfactual(batch(2)[0])  # the first time it finds out whether this host can do so
    calls: list[int] = []
    hooks: list[Callable[[], None]] = [
        conv.register_forward_hook(lambda _module, args, _output: calls.append(len(args[0]))).remove
        for conv in model.host.convs
    ]
    model.forward_with_counterfactual(batch(16)[0])
    assert calls == [16, 16]
    for remove in hooks:
        remove()


def test_a_seed_travels_the_life_of_the_specification_epoch_by_epoch() -> None:
    """Germinated after epoch 3 it is PROBATIONARY after epoch 9 with the settings of `digits`."""
    model = make_model()
    slot = model.seed_slot
    state = model.germinate_seed("conv_light", "s")
    state.record_gradient_ratio(1.0)
    assert slot.advance_stage(S.TRAINING).passed
    seen: list[tuple[str, float]] = []
    for _epoch in range(4, 10):
        seen.append((state.stage.name, round(state.alpha, 2)))
        slot.step_epoch()
    assert seen == [
        ("TRAINING", 0.0),
        ("TRAINING", 0.0),
        ("BLENDING", 0.38),
        ("BLENDING", 0.62),
        ("BLENDING", 1.0),
        ("SHADOWING", 1.0),
    ]
    assert state.stage == S.PROBATIONARY
    assert state.age == 6


def test_a_dead_seed_stays_in_training() -> None:
    model = make_model()
    state = model.germinate_seed("conv_light", "s")
    model.seed_slot.advance_stage(S.TRAINING)
    state.record_gradient_ratio(0.01)
    gates = [model.seed_slot.step_epoch() for _ in range(5)]
    assert state.stage == S.TRAINING
    assert gates[-1] is not None
    assert not gates[-1].passed


def test_culling_embargoes_the_slot_and_then_empties_it() -> None:
    model = make_model()
    slot = model.seed_slot
    model.germinate_seed("norm", "s")
    assert slot.cull("no use").passed
    assert model.seed_state is not None
    assert model.seed_state.cull_reason == "no use"
    stages = [slot.stage]
    while not slot.is_empty:
        with pytest.raises(LifecycleError, match="not empty"):
            slot.germinate("norm", "t")
        slot.step_epoch()
        stages.append(slot.stage)
    assert stages == [S.CULLED, S.EMBARGOED, S.DORMANT]
    model.germinate_seed("norm", "t")


def test_a_fossilized_seed_stays_for_good() -> None:
    model = grown("conv_light", S.FOSSILIZED)
    assert not model.cull_seed().passed
    for target in SeedStage:
        assert not model.seed_slot.advance_stage(target).passed
    assert model.seed_slot.stage == S.FOSSILIZED
    assert model.seed_slot.alpha == 1.0
    with pytest.raises(LifecycleError, match="FOSSILIZED"):
        model.germinate_seed("norm", "t")


def test_an_illegal_transition_changes_nothing_and_says_so() -> None:
    model = make_model()
    state = model.germinate_seed("norm", "s")
    result = model.seed_slot.advance_stage(S.PROBATIONARY)
    assert (result.passed, result.gate) == (False, "G4")
    assert "GERMINATED to PROBATIONARY" in result.message
    assert state.stage == S.GERMINATED


def test_a_blueprint_that_changes_the_feature_shape_is_refused() -> None:
    @blueprint("widening", topology="cnn")
    def widening(channels: int) -> nn.Module:
        return nn.Conv2d(channels, 2 * channels, 1)

    try:
        model = make_model()
        with pytest.raises(LifecycleError, match=r"'widening' must keep the feature shape"):
            model.germinate_seed("widening", "s")
        assert model.seed_slot.is_empty
        with pytest.raises(ConfigurationError, match="already registered"):
            blueprint("widening", topology="cnn")(nn.Identity)
        blueprint("widening", topology="cnn")(widening)  # the same again, as when a notebook's cell is run twice
    finally:
        del _REGISTRY["cnn", "widening"]


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'conv_heavy'"):
        make_model().germinate_seed("conv_heavi", "s")
    with pytest.raises(ConfigurationError, match="did you mean 'block1_post'"):
        make_model(slot="block1post")
    with pytest.raises(ConfigurationError, match="no injection points"):
        MorphogeneticModel(nn.Linear(2, 2))


def test_host_and_seed_parameters_are_disjoint_and_complete() -> None:
    model = grown("conv_heavy", S.TRAINING)
    host, seed = model.get_host_parameters(), model.get_seed_parameters()
    assert not {id(p) for p in host} & {id(p) for p in seed}
    assert {id(p) for p in host} | {id(p) for p in seed} == {id(p) for p in model.parameters()}
    assert model.active_seed_params == sum(p.numel() for p in seed)


def test_freezing_holds_a_fossilized_seed_still() -> None:
    host = CNNHost((1, 8, 8), 10, base_channels=4, blocks=1)
    model = MorphogeneticModel(host, settings=QUICK.model_copy(update={"freeze_fossilized": True}))
    state = model.germinate_seed("norm", "s")
    state.stage, state.contribution = S.PROBATIONARY, 1.0
    assert model.seed_slot.advance_stage(S.FOSSILIZED).passed
    assert not any(p.requires_grad for p in model.get_seed_parameters())


class ResidualHost(nn.Module):
    """A host as users write them: it works in place behind the slot, and adds what came before it."""

    injection_points = {"middle": 4}  # noqa: RUF012

    def __init__(self, skips: bool = True, reshapes: bool = False) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 10)
        self.skips, self.reshapes = skips, reshapes
        self.slot: nn.Module = nn.Identity()

    def register_slot(self, slot_id: str, module: nn.Module) -> None:
        self.slot = module

    def forward(self, images: Tensor) -> Tensor:
        before = self.enter(images)
        behind = nn.functional.relu(self.slot(before), inplace=True)
        if self.skips:
            behind = behind + before
        return self.head(behind.reshape(len(images), -1) if self.reshapes else behind.flatten(1))


@pytest.mark.parametrize(("skips", "reshapes"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_host_may_work_in_place_skip_the_slot_and_reshape(skips: bool, reshapes: bool) -> None:
    torch.manual_seed(0)
    model = MorphogeneticModel(ResidualHost(skips, reshapes), settings=QUICK)
    state = model.germinate_seed("conv_light", "s")
    model.seed_slot.advance_stage(S.TRAINING)
    inputs, targets = batch(16)
    nn.functional.cross_entropy(model.train()(inputs), targets).backward()
    assert not model.seed_slot.isolation_violated()
    state.stage, state.alpha = S.BLENDING, 0.7
    model.eval()
    with torch.no_grad():
        for count in (16, 1):
            together, without = model.forward_with_counterfactual(inputs[:count])
            assert torch.allclose(together, model(inputs[:count]), atol=1e-5)
            with model.seed_slot.force_alpha(0.0):
                assert torch.allclose(without, model(inputs[:count]), atol=1e-5)
            assert not torch.allclose(together, without, atol=1e-3)


def test_a_host_that_hides_its_slot_from_its_weights_is_refused() -> None:
    class Hiding(ResidualHost):
        def register_slot(self, slot_id: str, module: nn.Module) -> None:
            self.__dict__["slot"] = module

    with pytest.raises(ConfigurationError, match=r"does not hold the module of its slot.*nn.ModuleDict"):
        MorphogeneticModel(Hiding())


def test_channels_last_leaves_other_convolutions_alone() -> None:
    host = ResidualHost()
    host.volume = nn.Conv3d(1, 1, 3)
    model = MorphogeneticModel(host, channels_last=True)
    assert model.host.enter.weight.is_contiguous(memory_format=torch.channels_last)


def test_only_germinate_builds_a_seed() -> None:
    model = make_model()
    model.germinate_seed("norm", "s")
    assert model.seed_slot.advance_stage(S.CULLED).passed
    assert model.seed_state is not None and model.seed_state.embargo_left == QUICK.embargo_epochs
    while not model.seed_slot.is_empty:
        model.seed_slot.step_epoch()
    assert not model.seed_slot.advance_stage(S.GERMINATED).passed
    assert model.seed_slot.is_empty and model.seed_slot.seed is None
