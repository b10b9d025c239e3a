"""The transformer host and its seeds: causal, identical at the start, and held to everything that a CNN host is."""

import pytest
import torch
from fast_tasks import make_fast_text_task
from torch import Tensor, nn

from esper_ray.episode import ActionTable
from esper_ray.episode.host_run import HostRun
from esper_ray.errors import ConfigurationError
from esper_ray.lifecycle import LifecycleSettings, SeedStage
from esper_ray.models import (
    MorphogeneticModel,
    TransformerHost,
    barred_blueprints,
    build_seed,
    list_blueprints,
    registered_blueprints,
)
from esper_ray.models.blueprints import _REGISTRY
from esper_ray.models.transformer_seeds import AttentionSeed, FlexAttentionSeed
from esper_ray.tasks import create_model, get_task_spec, load_task_data
from esper_ray.training import _train_one_epoch, evaluate

S = SeedStage
WIDTH, LENGTH, VOCABULARY = 16, 12, 50
TRAINABLE = [b.blueprint_id for b in list_blueprints("transformer", WIDTH)]
QUICK = LifecycleSettings(training_dwell=1, shadowing_dwell=1, blending_steps=3)


def make_host(dropout: float = 0.0) -> TransformerHost:
    return TransformerHost((LENGTH,), VOCABULARY, layers=3, heads=2, width=WIDTH, context=LENGTH, dropout=dropout)


def make_model(dropout: float = 0.0, seed: int = 0) -> MorphogeneticModel:
    torch.manual_seed(seed)
    return MorphogeneticModel(make_host(dropout), settings=QUICK)


def tokens(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def noisy(model: MorphogeneticModel) -> None:
    """Moves a seed away from the identity."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.get_seed_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


# --- the host -----------------------------------------------------------------------------------------------------


def test_the_host_is_a_decoder_with_a_tied_embedding_and_a_point_after_every_layer() -> None:
    host = make_host()
    assert host(tokens()).shape == (4, LENGTH, VOCABULARY)
    assert host.injection_points == {f"layer_{i}_post_block": WIDTH for i in range(3)}
    assert host.default_slot == "layer_1_post_block"
    layer = 12 * WIDTH**2 + 13 * WIDTH
    assert sum(p.numel() for p in host.parameters()) == (VOCABULARY + LENGTH) * WIDTH + 3 * layer + 2 * WIDTH


def test_the_defaults_are_those_of_the_specification() -> None:
    with torch.device("meta"):
        host = TransformerHost((256,), 100)
    assert (len(host.layers), host.layers[0].heads, host.tokens.weight.shape[1]) == (6, 6, 384)
    assert (host.context, host.dropout.p) == (256, 0.1)


@pytest.mark.parametrize("blueprint_id", [None, *TRAINABLE])
def test_no_position_sees_a_later_one(blueprint_id: str | None) -> None:
    model = make_model()
    if blueprint_id:
        model.seed_slot.place_fossil(blueprint_id, "s")
        noisy(model)
    model.eval()
    first, second = tokens(), tokens()
    second[:, 7] = (second[:, 7] + 1) % VOCABULARY
    before, after = model(first), model(second)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-5)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_a_sequence_longer_than_the_context_is_refused_before_and_while_it_runs() -> None:
    with pytest.raises(ConfigurationError, match=r"64 tokens is longer than the host's context of 32: lower data.seq"):
        create_model(get_task_spec("pydoc", {"host.context": 32}))
    with pytest.raises(ConfigurationError, match="longer than the host's context"):
        make_host()(torch.zeros(1, LENGTH + 1, dtype=torch.long))
    with pytest.raises(ConfigurationError, match=r"host.heads=3 do not divide host.width=64"):
        create_model(get_task_spec("pydoc", {"host.heads": 3}))


# --- the seeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 4, 6, WIDTH, 64])
@pytest.mark.parametrize("blueprint_id", TRAINABLE)
def test_every_seed_starts_as_the_exact_identity_and_can_learn(blueprint_id: str, width: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, LENGTH, width)
    seed = build_seed(blueprint_id, "transformer", width)
    assert torch.equal(seed(features), features)
    (seed(features) * torch.randn(2, LENGTH, width)).sum().backward()
    assert sum(p.grad.abs().sum() for p in seed.parameters() if p.grad is not None) > 0


def test_seeds_are_listed_by_parameter_count() -> None:
    listed = list_blueprints("transformer", 64)
    assert [(b.blueprint_id, b.parameter_count) for b in listed] == [
        ("norm", 129),
        ("lora", 1024),
        ("attention", 16_768),
        ("mlp", 33_216),
    ]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_what_attention_does() -> None:
    torch.manual_seed(0)
    plain, flex = AttentionSeed(WIDTH), FlexAttentionSeed(WIDTH)
    torch.nn.init.normal_(plain.output.weight)
    flex.load_state_dict(plain.state_dict())
    features = torch.randn(2, LENGTH, WIDTH)
    with torch.no_grad():
        assert torch.allclose(flex(features), plain(features), atol=1e-5)
        assert torch.equal(flex.exportable()(features), plain(features))


def test_a_blueprint_that_the_device_cannot_train_is_no_action_and_the_reason_is_known() -> None:
    assert "flex_attention" in registered_blueprints("transformer")
    assert "backward on CPU" in barred_blueprints("transformer", WIDTH, "cpu")["flex_attention"]
    actions = ActionTable.of(make_model())
    assert actions.names[1:-2] == tuple(f"GERMINATE_{name.upper()}" for name in TRAINABLE)
    assert "flex_attention" not in actions.blueprint_ids


def test_a_blueprint_is_an_action_where_nothing_stands_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _REGISTRY["transformer", "flex_attention"]
    monkeypatch.setattr(entry, "obstacles", {(torch.device("cpu"), WIDTH): None})
    assert ActionTable.of(make_model()).blueprint_ids[-2:] == ("flex_attention", "mlp")


# --- the slot on it -----------------------------------------------------------------------------------------------


def gradients(model: MorphogeneticModel, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Logits and host gradients of one training batch, dropout and all."""
    model.train()
    torch.manual_seed(seed)
    logits = model(tokens())
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens(seed=2).flatten()).backward()
    return logits, [p.grad for p in model.get_host_parameters() if p.grad is not None]


class DropoutSeed(nn.Module):
    """A seed that draws random numbers of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + nn.functional.dropout(self.linear(features), 0.5, self.training)


@pytest.mark.parametrize("blueprint_id", [*TRAINABLE, "dropout"])
def test_host_gradients_are_bit_identical_while_a_seed_incubates(
    blueprint_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = type(next(iter(_REGISTRY.values())))(DropoutSeed, None)
    monkeypatch.setitem(_REGISTRY, ("transformer", "dropout"), entry)
    bare, seeded = make_model(dropout=0.1), make_model(dropout=0.1)
    seeded.germinate_seed(blueprint_id, "s")
    seeded.seed_slot.advance_stage(S.TRAINING)
    noisy(seeded)
    expected, found = gradients(bare, 5), gradients(seeded, 5)
    assert torch.equal(expected[0], found[0])
    assert all(torch.equal(a, b) for a, b in zip(expected[1], found[1], strict=True))
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in seeded.get_seed_parameters())
    assert not seeded.seed_slot.isolation_violated()


@pytest.mark.parametrize("blueprint_id", TRAINABLE)
def test_the_counterfactual_in_one_pass_equals_two_passes(blueprint_id: str) -> None:
    model = make_model()
    state = model.germinate_seed(blueprint_id, "s")
    state.stage, state.alpha = S.BLENDING, 0.6
    noisy(model)
    model.eval()
    with torch.no_grad():
        together, without = model.forward_with_counterfactual(tokens())
        assert torch.allclose(together, model(tokens()), atol=1e-5)
        with model.seed_slot.force_alpha(0.0):
            assert torch.allclose(without, model(tokens()), atol=1e-5)
    assert not torch.allclose(together, without, atol=1e-3)


@pytest.mark.parametrize("blueprint_id", TRAINABLE)
def test_every_seed_passes_every_gate_on_a_text_and_is_kept(blueprint_id: str) -> None:
    task = make_fast_text_task(data__train_samples=320)
    run = HostRun(task, load_task_data(task), "cpu", 0)
    stages = []
    for epoch in range(task.max_epochs):
        mask = run.legal_actions()
        if epoch == 3:
            run.decide(run.actions.germinate(blueprint_id))
        elif mask[run.actions.fossilize]:
            run.decide(run.actions.fossilize)
        alpha = run.train_epoch().alpha
        assert (run.outcome is not None) and (run.outcome.contribution is None) == (alpha == 0.0)
        stages.append(run.model.seed_slot.stage)
    assert {S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY} <= set(stages)
    assert run.model.seed_state is not None and run.model.seed_state.isolation_violations == 0


def test_accuracy_of_a_text_counts_tokens() -> None:
    class Oracle(nn.Module):
        """Predicts token 3 everywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.eye(VOCABULARY)[3])

        def forward(self, inputs: Tensor) -> Tensor:
            return self.logits.expand(*inputs.shape, VOCABULARY)

    model = Oracle()
    targets = tokens(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, correct, total, _ = _train_one_epoch(
        model, [(targets, targets)], nn.CrossEntropyLoss(), optimizer, None, "cpu", "lm"
    )
    assert total == 4 * LENGTH
    assert correct == (targets == 3).sum().item() > 0

    whole = make_model().eval()
    found = evaluate(
        whole, [(tokens(6), tokens(6, 2)), (tokens(1, 3), tokens(1, 4))], nn.CrossEntropyLoss(), "cpu", "lm"
    )
    inputs, wanted = torch.cat([tokens(6), tokens(1, 3)]), torch.cat([tokens(6, 2), tokens(1, 4)])
    with torch.no_grad():
        logits = whole(inputs)
    assert found.accuracy == pytest.approx(100 * (logits.argmax(-1) == wanted).double().mean().item())
    assert found.loss == pytest.approx(
        nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).item(), rel=1e-5
    )
