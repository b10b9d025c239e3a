"""Learner health: figures before and after an update, and warnings when learning has stopped."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from esper_ray.orchestration.learner.policy_network import initial_state

_NO_EXPLAINED_VARIANCE = 0.05
_COLLAPSED_ENTROPY = 0.01
_LARGE_KL = 0.2
_LARGE_CLIP_FRACTION = 0.8
_STILL_KL = 1e-7
_FLAT_TARGETS = 1e-6
_WARM_UP_SHARE = 0.25
"""Share of the iterations in which the value function may still know nothing."""


class UpdateWatch:
    """Looks at a learner update from both sides, over exactly the steps that it learns from.

    Make one before the update; call `report` after it. Policy figures are over the steps with a real choice.

    Args:
        module: the policy network, as the learner has it.
        rollouts: the iteration's episodes.
        discount: γ of the learner.
        gae_lambda: λ of the learner.
        clip: clip range of the probability ratio.
    """

    def __init__(
        self, module: RLModule, rollouts: Sequence[SingleAgentEpisode], discount: float, gae_lambda: float, clip: float
    ) -> None:
        assert all(rollout.is_terminated for rollout in rollouts), "a truncated episode would need its last value"
        self._module = module
        self._clip = clip
        self._batch = _as_batch(rollouts)
        self._lengths = [len(rollout) for rollout in rollouts]
        self._before, values = self._look()
        self._targets = np.concatenate(
            [
                value_targets(rollout.get_rewards(), of_episode, discount, gae_lambda)
                for rollout, of_episode in zip(rollouts, _split(values, rollouts), strict=True)
            ]
        )
        self._explained = explained_variance(self._targets, values)

    def report(self) -> dict[str, float | None]:
        """Returns the learner's figures.

        explained_variance: share of the variance of the value targets that the value function knew before the update;
        entropy_share: mean entropy ÷ its maximum, log(legal actions), before the update; kl: mean KL divergence of the
        policy before from the one after; clip_fraction: share of steps whose probability ratio left the clip range;
        value_target_mean, value_target_std. None where there was no choice, or no variance.
        """
        after, _ = self._look()
        mask = self._batch[Columns.OBS]["action_mask"] > 0
        choice = mask.sum(dim=1) > 1
        figures: dict[str, float | None] = {
            "explained_variance": self._explained,
            "value_target_mean": float(self._targets.mean()),
            "value_target_std": float(self._targets.std()),
            "entropy_share": None,
            "kl": None,
            "clip_fraction": None,
        }
        if bool(choice.any()):
            before, after, mask = self._before[choice], after[choice], mask[choice]
            probabilities = before.exp()
            entropy = -(probabilities * before.masked_fill(~mask, 0.0)).sum(dim=1)
            kl = (probabilities * (before - after).masked_fill(~mask, 0.0)).sum(dim=1)
            taken = self._batch[Columns.ACTIONS][choice][:, None]
            ratio = (after.gather(1, taken) - before.gather(1, taken)).exp()
            figures["entropy_share"] = float((entropy / mask.sum(dim=1).log()).mean())
            figures["kl"] = float(kl.mean())
            figures["clip_fraction"] = float(((ratio - 1).abs() > self._clip).float().mean())
        return figures

    @torch.no_grad()
    def _look(self) -> tuple[Tensor, NDArray[np.float32]]:
        """Returns the log-probabilities of the actions (N, A) and the values (N,), on the CPU."""
        device = next(iter(self._module.parameters())).device
        moved = {name: value.to(device) for name, value in self._batch[Columns.OBS].items()}
        if self._module.is_stateful():
            episodes = zip(*(value.split(self._lengths) for value in moved.values()), strict=True)
            seen = [self._forward(dict(zip(moved, (v[None] for v in of_one), strict=True))) for of_one in episodes]
            logits, values = (torch.cat([part[0] for part in parts]) for parts in zip(*seen, strict=True))
        else:
            logits, values = self._forward(moved)
        return logits.log_softmax(dim=1).cpu(), values.cpu().numpy()

    def _forward(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the action logits and the values of a batch; of one whole episode, (1, T, …), if recurrent."""
        batch: dict[str, Any] = {Columns.OBS: observations}
        if self._module.is_stateful():
            batch[Columns.STATE_IN] = initial_state(self._module, 1)
        return self._module.forward_train(batch)[Columns.ACTION_DIST_INPUTS], self._module.compute_values(batch)


def value_targets(
    rewards: NDArray[Any], values: NDArray[np.float32], discount: float, gae_lambda: float
) -> NDArray[np.float64]:
    """Returns the λ-returns of a terminated episode, on which the value function is trained, (T,).

    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016, equation 16.

    Args:
        rewards: (T,).
        values: (T,), of the states before the steps.
        discount: γ.
        gae_lambda: λ.
    """
    targets = np.zeros(len(rewards))
    following = last = 0.0
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discount * (gae_lambda * following + (1 - gae_lambda) * last)
        targets[t], last = following, float(values[t])
    return targets


def explained_variance(targets: NDArray[Any], values: NDArray[Any]) -> float | None:
    """Returns 1 − Var(targets − values) ÷ Var(targets); None where the targets do not vary."""
    spread = float(np.var(targets))
    return 1.0 - float(np.var(targets - values)) / spread if spread > _FLAT_TARGETS**2 else None


def warnings_of(learner: Mapping[str, float | None], iteration: int, iterations: int) -> list[str]:
    """Returns warnings, in words, about an iteration's learner figures."""
    found = []
    explained, entropy, kl = (learner.get(name) for name in ("explained_variance", "entropy_share", "kl"))
    clipped, gradient, spread = (learner.get(name) for name in ("clip_fraction", "gradient_norm", "value_target_std"))
    if gradient is not None and not np.isfinite(gradient):
        found.append("the learner's gradient is not finite: the policy is lost; lower ppo.lr_start")
    if spread is not None and spread < _FLAT_TARGETS:
        found.append(
            "every episode earned the same, so there is nothing to learn from; is anything ever legal but WAIT?"
        )
    elif explained is not None and explained < _NO_EXPLAINED_VARIANCE and iteration > _WARM_UP_SHARE * iterations:
        found.append(f"the value function explains nothing (explained variance {explained:.2f}): advantages are noise")
    if entropy is not None and entropy < _COLLAPSED_ENTROPY:
        found.append(
            f"the policy hardly explores any more (entropy {entropy:.1%} of its maximum): it cannot find better"
        )
    if kl is not None and kl > _LARGE_KL:
        found.append(f"an update changed the policy very much (KL {kl:.2f}): steps are too long; lower ppo.lr_start")
    elif clipped is not None and clipped > _LARGE_CLIP_FRACTION:
        found.append(f"{clipped:.0%} of the steps left the clip range: steps are too long; lower ppo.lr_start")
    if kl is not None and kl < _STILL_KL:
        found.append("the update left the policy as it was: learning has stopped")
    return found


def _as_batch(rollouts: Sequence[SingleAgentEpisode]) -> dict[str, Any]:
    """Returns the steps of all episodes, one after the other, on the CPU."""
    observations = [rollout.get_observations(slice(0, len(rollout))) for rollout in rollouts]
    joined = {
        name: torch.from_numpy(np.concatenate([np.asarray(of_episode[name]) for of_episode in observations]))
        for name in observations[0]
    }
    actions = np.concatenate([np.asarray(rollout.get_actions()) for rollout in rollouts])
    return {Columns.OBS: joined, Columns.ACTIONS: torch.from_numpy(actions).long()}


def _split(values: NDArray[np.float32], rollouts: Sequence[SingleAgentEpisode]) -> list[NDArray[np.float32]]:
    """Cuts the values of all steps into those of each episode."""
    ends = np.cumsum([len(rollout) for rollout in rollouts])[:-1]
    return np.split(values, ends)
