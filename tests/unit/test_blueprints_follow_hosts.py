"""Seeds fit the host that they grow in: causal or not, its type, its memory layout; what does not fit is one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fast_tasks import make_fast_text_task
from torch import Tensor, nn

from esper_ray.errors import EsperError, LifecycleError
from esper_ray.lifecycle import LifecycleSettings
from esper_ray.models import MorphogeneticModel, SlottedHost, barred_blueprints, blueprint, build_seed, host, probes
from esper_ray.tasks import DataSettings, HostSettings, TaskSpec, build, create_model, get_task_spec, require_sound
from esper_ray.training import _train_one_epoch

WIDTH, CLASSES = 8, 3
QUICK = LifecycleSettings(training_dwell=1, shadowing_dwell=1, blending_steps=3)
ATTENTION = ["attention", *({"flex_attention"} - {*barred_blueprints("transformer", WIDTH)})]


class Encoder(SlottedHost):
    """Two layers of torch's own encoder, with slots before, between and behind them."""

    topology = "transformer"
    default_slot = "middle"
    is_causal, pools = False, "mean"

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.injection_points = dict.fromkeys(("start", "middle", "end"), WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, classes)

    def attend(self, features: Tensor) -> Tensor:
        length = features.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.is_causal else None
        features = self.at("start", features)
        for slot_id, layer in zip(("middle", "end"), self.layers, strict=True):
            features = self.at(slot_id, layer(features, src_mask=mask))
        return features

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.attend(self.embedded(inputs))
        logits: Tensor = self.head(features.mean(dim=1) if self.pools == "mean" else features[:, int(self.pools)])
        return logits

    def embedded(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class OfTokens(Encoder):
    """As BERT: token ids in, a class out."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__(input_shape, classes)
        self.embed, self.places = nn.Embedding(5, WIDTH), nn.Parameter(torch.randn(input_shape[0], WIDTH))

    def embedded(self, inputs: Tensor) -> Tensor:
        embedded: Tensor = self.embed(inputs) + self.places
        return embedded


class OfPatches(Encoder):
    """As ViT: patches of an image behind a token of their own, from which the class is read."""

    pools = "0"

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__(input_shape, classes)
        self.patches, self.token = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.zeros(1, 1, WIDTH))

    def embedded(self, inputs: Tensor) -> Tensor:
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(inputs), -1, -1), patches], dim=1)


class StartsAsIdentity(OfPatches):
    """As with LayerScale or ReZero: at the start no layer adds anything."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__(input_shape, classes)
        for layer in self.layers:
            for part in (layer.self_attn.out_proj, layer.linear2):  # type: ignore[union-attr]
                nn.init.zeros_(part.weight)  # type: ignore[arg-type, union-attr]


class OneSlotInFront(OfTokens):
    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__(input_shape, classes)
        self.injection_points, self.default_slot = {"start": WIDTH}, "start"


class Decoder(OfTokens):
    """As GPT with a class read from the last token."""

    is_causal, pools = True, "-1"


class Reader(OfTokens):
    """Logits at each position, which see all others: no language model, but allowed."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.attend(self.embedded(inputs)))
        return logits


class Predictor(Reader):
    is_causal = True


HOSTS: dict[type[Encoder], tuple[tuple[int, ...], bool]] = {
    OfTokens: ((6,), False),
    OfPatches: ((3, 8, 8), False),
    StartsAsIdentity: ((3, 8, 8), False),
    OneSlotInFront: ((6,), False),
    Decoder: ((6,), True),
    Reader: ((6,), False),
    Predictor: ((6,), True),
}


def task_of(kind: type[Any] | Callable[..., Any], shape: tuple[int, ...], slot: str | None = None) -> TaskSpec:
    host("tried")(kind)
    settings: dict[str, Any] = {"task_type": "classification", "input_shape": shape, "classes": CLASSES}
    data = DataSettings(source="digits")
    if isinstance(kind, type) and issubclass(kind, Reader):
        settings = {"task_type": "lm"}
        data = DataSettings(source="pydoc", sequence_length=shape[0])
    return TaskSpec(name="tried", summary="", data=data, host=HostSettings(kind="tried", slot=slot), **settings)


def sees_later(seed: nn.Module, features: Tensor) -> bool:
    with torch.no_grad():
        for parameter in seed.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        before = seed.eval()(features)
        features[:, -1] += torch.randn(features.shape[-1])
        return not torch.equal(before[:, :-1], seed(features)[:, :-1])


@pytest.mark.parametrize("slot", ["start", "middle", "end"])
@pytest.mark.parametrize("blueprint_id", ATTENTION)
@pytest.mark.parametrize("kind", HOSTS)
def test_attention_seeds_are_causal_in_causal_hosts_alone(kind: type[Encoder], blueprint_id: str, slot: str) -> None:
    shape, causal = HOSTS[kind]
    if issubclass(kind, Reader):  # its vocabulary is that of a text
        kind.embedded = lambda self, inputs: self.embed(inputs % 5) + self.places  # type: ignore[method-assign, assignment]
    model = create_model(task_of(kind, shape, "start" if kind is OneSlotInFront else slot))
    assert model.seed_slot.causal is causal
    model.germinate_seed(blueprint_id, "s")
    assert model.seed_slot.seed is not None
    assert sees_later(model.seed_slot.seed, torch.randn(2, 6, WIDTH)) is not causal


def test_a_layer_norm_does_not_hide_that_a_seed_sees_later_positions() -> None:
    """Of these features it takes a constant away to the last bit."""
    features = torch.tensor([-1.0, 1.0]).repeat(WIDTH // 2).expand(1, 6, WIDTH)
    for causal in (False, True):
        seed = probes.disturbed(build_seed("attention", "transformer", WIDTH, causal))
        assert probes.sees_later_positions(seed, features) is not causal


def test_probing_a_host_draws_nothing_and_leaves_the_shipped_transformer_as_it_was() -> None:
    task, states = make_fast_text_task(), []
    for _ in range(2):
        build._is_causal.cache_clear()
        torch.manual_seed(0)
        model = create_model(task)
        states.append((model.state_dict(), torch.get_rng_state()))
    create_model(task)
    torch.manual_seed(0)
    states.append((create_model(task).state_dict(), torch.get_rng_state()))  # known already
    for weights, generator in states[1:]:
        assert torch.equal(generator, states[0][1])
        assert all(torch.equal(value, states[0][0][name]) for name, value in weights.items())
    assert model.seed_slot.causal
    assert model.seed_slot.feature_shape is None


@pytest.mark.parametrize("causal", [True, False])
def test_flex_attention_computes_what_attention_does(causal: bool) -> None:
    flex = build_seed("flex_attention", "transformer", WIDTH, causal)
    plain = build_seed("attention", "transformer", WIDTH, causal)
    nn.init.normal_(flex.output.weight)  # type: ignore[union-attr, arg-type]
    plain.load_state_dict(flex.state_dict())
    features = torch.randn(2, 7, WIDTH)
    with torch.no_grad():  # not every torch trains FlexAttention
        torch.testing.assert_close(flex(features), plain(features))
        assert torch.equal(flex.exportable()(features), plain(features))  # type: ignore[operator]


def test_a_host_defined_anew_is_probed_anew() -> None:
    assert not create_model(task_of(OfTokens, (6,))).seed_slot.causal

    def tried(input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Decoder(input_shape, classes)

    tried.__module__, tried.__qualname__ = OfTokens.__module__, OfTokens.__qualname__
    assert create_model(task_of(tried, (6,))).seed_slot.causal


# --- what a plugin's seeds and hosts may assume ---------------------------------------------------------------------


class Change(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)


class SeesAll(Change):
    def forward(self, features: Tensor) -> Tensor:
        return features + self.linear(features).mean(dim=1, keepdim=True)


class SequenceFirst(nn.Module):
    """torch's attention expects (T, N, width) unless it is told otherwise."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2)

    def forward(self, features: Tensor) -> Tensor:
        attended: Tensor = features + self.attention(features, features, features)[0]
        return attended


class Views(Change):
    def forward(self, features: Tensor) -> Tensor:
        pooled = features.view(len(features), -1).view(*features.shape[:2], -1).mean(dim=2)
        return features + self.linear(pooled)[:, :, None, None]


def refusal(task: TaskSpec) -> str:
    with pytest.raises(EsperError) as caught:
        require_sound(task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_seed_that_shows_a_language_model_its_targets_is_refused() -> None:
    blueprint("sees_all", topology="transformer")(SeesAll)
    task = make_fast_text_task()
    assert "blueprint 'sees_all' lets a position depend on later ones" in refusal(task)
    require_sound(task_of(OfPatches, (3, 8, 8)))  # there are no targets to see there


def test_a_seed_that_takes_the_first_dimension_for_time_is_refused() -> None:
    blueprint("sequence_first", topology="transformer")(SequenceFirst)
    assert "blueprint 'sequence_first' mixes the samples of a batch" in refusal(make_fast_text_task())


def test_a_host_that_takes_the_first_dimension_for_time_is_refused() -> None:
    class Mixing(OfPatches):
        pools = "mean"

        def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
            super().__init__(input_shape, classes)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0) for _ in range(2))

    assert "host Mixing mixes the samples of a batch" in refusal(task_of(Mixing, (3, 8, 8)))


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_seed_that_assumes_contiguous_memory_is_refused_where_features_are_not(channels_last: bool) -> None:
    blueprint("views", topology="cnn")(Views)
    task = get_task_spec("digits", {"host.channels_last": channels_last})
    if channels_last:
        assert "blueprint 'views' fails on features of shape (2, 8, 4, 4) and strides (128, 1, 32, 8)" in refusal(task)
    else:
        require_sound(task)


@pytest.mark.parametrize("side", [1, 2])
def test_features_of_one_value_are_refused_by_seeds_that_normalise_them(side: int) -> None:
    class OneValue(SlottedHost):
        def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
            super().__init__()
            self.injection_points = {"end": 1}
            self.conv, self.head = nn.Conv2d(1, 1, 8 // side, 8 // side), nn.Linear(1, classes)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.at("end", self.conv(images)).mean(dim=(2, 3)))
            return logits

    task = task_of(OneValue, (1, 8, 8))
    if side == 1:
        assert "fails on features of shape (1, 1, 1, 1): ValueError: Expected more than 1 value" in refusal(task)
    else:
        require_sound(task)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 7, 9, 12])
def test_shipped_seeds_fit_every_width(width: int) -> None:
    for topology, shape in {"cnn": (2, width, 3, 3), "transformer": (2, 3, width)}.items():
        features = torch.randn(shape)
        for name in ("attention", "norm"):
            assert build_seed(name, topology, width)(features).shape == features.shape


def test_a_seed_has_the_type_of_its_host() -> None:
    class Double(SlottedHost):
        topology = "transformer"

        def __init__(self) -> None:
            super().__init__()
            self.injection_points = {"middle": WIDTH}
            self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, CLASSES)
            self.double()

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.leave(self.at("middle", self.enter(inputs.double()[:, None]))[:, 0])
            return logits

    model = MorphogeneticModel(Double(), settings=QUICK)
    model.require_sound(torch.zeros(1, 4), (1, CLASSES))
    model.germinate_seed("mlp", "s")
    seeds = model.get_seed_parameters()
    assert {parameter.dtype for parameter in seeds} == {torch.float64}
    batch = torch.randn(5, 4), torch.arange(5) % CLASSES
    model.seed_slot.step_epoch()
    before = [parameter.clone() for parameter in seeds]
    optimizers = [torch.optim.SGD(part, lr=0.1) for part in (model.get_host_parameters(), seeds)]
    _train_one_epoch(model, [batch], nn.CrossEntropyLoss(), *optimizers, "cpu", "classification")
    assert any(not torch.equal(old, new) for old, new in zip(before, seeds, strict=True))


def test_what_cannot_be_fitted_is_said_when_it_germinates() -> None:
    blueprint("odd", topology="cnn")(lambda width: nn.Conv2d(width + 1, width, 1))
    model = create_model(task_of(nothing_but_a_convolution, (1, 8, 8)))
    with pytest.raises(LifecycleError, match=r"blueprint 'odd' fails on features of shape \(1, 4, 8, 8\)"):
        model.germinate_seed("odd", "s")


def nothing_but_a_convolution(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    class Plain(SlottedHost):
        def __init__(self) -> None:
            super().__init__()
            self.injection_points = {"middle": 4}
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, classes)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.at("middle", self.conv(images)).mean(dim=(2, 3)))
            return logits

    return Plain()
