"""A process that trains does without torch's compiler, and computes what it would with it."""

import subprocess
import sys

TRAINED = """
import sys, torch
from torch import nn
def trained(kind):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = getattr(torch.optim, kind)(layer.parameters(), lr=0.1, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return layer.weight.tolist()
"""


def test_optimizers_step_without_the_compiler_as_they_do_with_it() -> None:
    steps = "print([trained(kind) for kind in ('SGD', 'Adam', 'AdamW')], 'torch._dynamo' in sys.modules)"
    code = f"""{TRAINED}
from esper_ray.process import without_compiler
without_compiler()
{steps}
without_compiler()
{steps}
"""
    lean = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole = subprocess.run([sys.executable, "-c", f"{TRAINED}\n{steps}"], capture_output=True, text=True, check=True)
    assert whole.stdout.endswith(" True\n"), "or the test says nothing"
    assert lean.stdout == 2 * whole.stdout.replace("True", "False")


def test_an_actor_trains_without_the_compiler() -> None:
    code = """
import sys
from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorSettings
from esper_ray.orchestration.fleet.env_runner import EpisodeRunner
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.learner_config import Learning, build_config
from esper_ray.tasks import get_task_spec
settings = ActorSettings(get_task_spec("digits", {"data.train_samples": 64, "data.validation_samples": 50}))
learning = Learning(LearnerSettings(), iterations=1, episodes_per_iteration=1, seed=0)
runner = EpisodeRunner(config=build_config(settings, learning, Placement(0, 1, 0.0, 2)), worker_index=1)
runner._envs().time_epoch()
print({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "set()"


def test_freed_memory_is_used_again_without_the_kernel() -> None:
    """In the batches of an epoch on images of 32×32; without it the kernel fills a thousand pages for each."""
    code = """
import resource, sys, torch
from torch import nn
from esper_ray import create_model, get_task_spec
from esper_ray.process import retain_freed_memory
from esper_ray.training import _train_one_epoch, build_optimizer
if sys.argv[1] == "keep":
    retain_freed_memory()
torch.set_num_threads(1)
task = get_task_spec("cifar10")
model = create_model(task)
optimizer = build_optimizer(model.parameters(), task.host_optimizer)
batches = [(torch.randn(128, 3, 32, 32), torch.randint(10, (128,)))] * 10
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _train_one_epoch(model, batches, nn.CrossEntropyLoss(), optimizer, None, "cpu", "classification")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    kept, handed_back = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "hand back")
    )
    assert handed_back > 5 * kept
