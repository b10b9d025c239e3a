"""The policy network as RLlib trains it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule

from esper_ray.policies.network import NetworkSpec


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
