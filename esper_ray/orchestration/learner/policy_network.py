<<<<<<< HEAD
"""The structure of a policy network, and its weights on disk."""
=======
"""The policy network as RLlib trains it."""
>>>>>>> main

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule

from esper_ray.policies.network import NetworkSpec


<<<<<<< HEAD
class NetworkSpec(BaseModel):
    """A policy network, as plain values.

    Attributes:
        kind: "mlp", or "lstm": the same with a recurrent layer behind it.
        hidden: widths of the tanh layers; policy and value function have networks of their own.
        lstm_width: width of the recurrent layer.
        observations: values that it sees.
        actions: actions that it chooses from.
        steps: longest episode, steps; a recurrent network is trained on whole episodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlp", "lstm"]
    hidden: tuple[PositiveInt, ...]
    lstm_width: PositiveInt
    observations: PositiveInt
    actions: PositiveInt
    steps: PositiveInt

    @classmethod
    def of(cls, module: RLModule, steps: int) -> "NetworkSpec":
        """Returns the specification of a network."""
        config = module.model_config
        values = config if isinstance(config, dict) else asdict(config)
        return cls(
            kind="lstm" if values["use_lstm"] else "mlp",
            hidden=tuple(values["fcnet_hiddens"]),
            lstm_width=values["lstm_cell_size"],
            observations=module.observation_space["observations"].shape[0],
            actions=int(module.action_space.n),
            steps=steps,
        )

    def build(self) -> RLModule:
        """Returns the network with initial weights."""
        observation_space = gym.spaces.Dict(
            {
                "observations": gym.spaces.Box(-np.inf, np.inf, (self.observations,), np.float32),
                "action_mask": gym.spaces.MultiBinary(self.actions),
            }
        )
        return MaskedPPOTorchRLModule(
            observation_space=observation_space,
            action_space=gym.spaces.Discrete(self.actions),
            model_config=rllib_model_config(self.kind, self.hidden, self.lstm_width, self.steps),
        )
=======
def network_spec(module: RLModule, steps: int) -> NetworkSpec:
    """Returns layers and widths of a module that RLlib trains on episodes of at most `steps` steps."""
    config = module.model_config
    values = config if isinstance(config, dict) else asdict(config)
    return NetworkSpec(
        kind="lstm" if values["use_lstm"] else "mlp",
        hidden=tuple(values["fcnet_hiddens"]),
        lstm_width=values["lstm_cell_size"],
        observations=module.observation_space["observations"].shape[0],
        actions=int(module.action_space.n),
        steps=steps,
    )
>>>>>>> main


def rllib_model_config(
    kind: Literal["mlp", "lstm"], hidden: Sequence[int], lstm_width: int, steps: int
) -> DefaultModelConfig:
    """Returns a network in RLlib's words; arguments as the attributes of `NetworkSpec`."""
    return DefaultModelConfig(
        fcnet_hiddens=list(hidden),
        fcnet_activation="tanh",
        vf_share_layers=False,
        use_lstm=kind == "lstm",
        lstm_cell_size=lstm_width,
        max_seq_len=steps + 1,  # RLlib adds a step, at which it takes the last value
    )


def initial_state(module: RLModule, episodes: int) -> Any:
    """Returns the initial state of a recurrent network for `episodes` episodes, each tensor (episodes, width)."""
    device = next(iter(module.parameters())).device

    def repeated(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: repeated(inner) for name, inner in value.items()}
        tensor = torch.as_tensor(value, dtype=torch.float32, device=device)
        return tensor[None].repeat(episodes, *[1] * tensor.dim())

    return repeated(module.get_initial_state())
