"""Translation of a model to the source text of a module that needs torch only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Graph

from esper_ray.errors import ConfigurationError
from esper_ray.models import MorphogeneticModel
from esper_ray.tasks import PreparedData

_HOST = "model.host."


class DeployedModel(nn.Module):
    """The model behind the standardisation of its inputs, so that it takes samples as the data set stores them.

    Shape:
        inputs (N, …) as stored, or (N, T) int64 tokens; output as of the host.
    """

    input_offset: Tensor
    input_scale: Tensor

    def __init__(self, model: MorphogeneticModel, prepared: PreparedData, sample_dimensions: int) -> None:
        super().__init__()
        self.model = model
        self.normalises = bool(prepared.mean)
        if self.normalises:
            per_channel = (1, -1, *[1] * (sample_dimensions - 1))
            self.register_buffer("input_offset", -torch.tensor(prepared.mean).view(per_channel))
            self.register_buffer("input_scale", 1.0 / torch.tensor(prepared.std).view(per_channel))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the logits."""
        if inputs.dtype == torch.uint8 and not self.normalises:
            inputs = inputs.long()
        if self.normalises:
            inputs = inputs.float().add(self.input_offset).mul(self.input_scale)
        outputs: Tensor = self.model(inputs)
        return outputs


@dataclass(frozen=True)
class Program:
    """A model as text and tensors.

    Attributes:
        forward: source of `forward(self, inputs)`, in operations of torch, on the attributes in `weights`.
        weights: name in the source → name in the weights file.
        trainable: names in the source of those that are parameters.
        tensors: name in the weights file → tensor, contiguous.
    """

    forward: str
    weights: dict[str, str]
    trainable: list[str]
    tensors: dict[str, Tensor]


def trace(deployed: DeployedModel, inputs: Tensor) -> Program:
    """Traces the model in evaluation mode; the batch size stays free.

    Args:
        deployed: the model.
        inputs: a batch of at least 2 samples, as stored.

    Raises:
        ConfigurationError: `torch.export` cannot trace this host or seed.
    """
    deployed.eval()
    try:
        batch = torch.export.Dim("batch")
        with torch.no_grad():
            exported = torch.export.export(deployed, (inputs,), dynamic_shapes={"inputs": {0: batch}}, strict=False)
    except Exception as error:  # torch.export raises whatever the traced code does, and types of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        name, seed = type(deployed.model.host).__name__, deployed.model.seed_slot.seed
        grown = f" with seed {type(seed).__name__}" if seed is not None else ""
        raise ConfigurationError(
            f"torch.export cannot trace host {name}{grown}: {reason}; write its forward in plain torch"
        ) from error
    signature = exported.graph_signature
    origins: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    used = _attributes_for_inputs(exported.graph, origins)
    blocks = [node.target for node in exported.graph.nodes if node.op == "get_attr" and node.target not in used]
    if blocks:
        raise ConfigurationError(
            f"host {type(deployed.model.host).__name__} or its seed computes inside a block such as autocast, "
            "enable_grad or cond, which cannot be written as plain torch; write its forward without"
        )
    tensors = {**exported.state_dict, **exported.constants}
    parameters = set(signature.inputs_to_parameters.values())
    return Program(
        forward=_source(exported.graph),
        weights={attribute: _stored_name(origin) for attribute, origin in used.items()},
        trainable=[attribute for attribute, origin in used.items() if origin in parameters],
        tensors={_stored_name(origin): tensors[origin].detach().contiguous() for origin in used.values()},
    )


def _attributes_for_inputs(graph: Graph, origins: Mapping[str, str]) -> dict[str, str]:
    """Turns the graph's tensor inputs into attributes; returns attribute → name in the model, of those in use."""
    used: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name in origins:
            if node.users:
                attribute = _stored_name(origins[node.name]).replace(".", "_")
                while attribute in used:
                    attribute += "_"
                used[attribute] = origins[node.name]
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.create_node("get_attr", attribute))
            graph.erase_node(node)
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # it would tie the network to the device of the trace
        elif node.op == "output":
            ((result,),) = node.args
            node.args = (result,)
    return used


def _stored_name(origin: str) -> str:
    """Returns the name in the weights file: the host's own, or that of the normalisation."""
    return origin.removeprefix(_HOST)


def _source(graph: Graph) -> str:
    code = graph.python_code("self").src.strip("\n")
    return re.sub(r";  [\w =]+ = None", "", code)  # frees each value after its last use; only noise to a reader
