"""Details that only a GPU runs into, as far as they can be seen without one."""

import torch

from esper_ray.data import TokenLoader
from esper_ray.episode import MorphogenesisEnv
from esper_ray.tasks import TaskSpec


def test_a_state_saved_on_a_gpu_is_put_on_the_device_of_the_run(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task)
    env.reset(seed=1)
    storage = torch.arange(4.0).untyped_storage()
    assert env.run._device_of(storage, "cuda:0").tolist() == storage.tolist()
    assert env.run._device_of(storage, "cpu") is storage


def test_tokens_above_32767_are_gathered_without_uint16_which_a_gpu_cannot() -> None:
    tokens = torch.arange(65_536).to(torch.uint16)
    loader = TokenLoader(tokens, 256, 64, "cpu")
    assert loader._tokens.dtype == torch.int16
    inputs, targets = (torch.cat(batches) for batches in zip(*loader, strict=True))
    assert torch.equal(inputs.flatten(), torch.arange(255 * 256))
    assert torch.equal(targets.flatten(), torch.arange(1, 255 * 256 + 1))
    (stretch,) = loader.part(257 / 65_536, 0.0, 2, seed=3)
    assert 0 <= stretch[0].min() <= stretch[0].max() < 65_536
