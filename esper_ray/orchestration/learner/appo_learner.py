"""APPO's learner, updated like PPO's: when an iteration's episodes are there, and to the end of the update.

RLlib's own hands batches to a thread, and answers before they were learned from. Here whoever is in the middle of an
episode plays on while the learner learns, which takes far less time than an episode; a thread would gain little.
"""

from typing import Any

from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.core.learner.learner import Learner


class EpisodeAPPOLearner(APPOTorchLearner):
    """V-trace, clipped ratio and target network are RLlib's."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Updates the policy in this thread; as `Learner.update`."""
        return Learner.update(self, *args, **kwargs)
