"""Policies: the learned one, and the controls that it is held against, which learn nothing."""

from esper_ray.policies.acting import Acting
from esper_ray.policies.heuristic import HeuristicPolicy
from esper_ray.policies.learned import LearnedPolicy
from esper_ray.policies.scripted import RandomPolicy, ReplayPolicy, SchedulePolicy, WaitPolicy

__all__ = [
    "Acting",
    "HeuristicPolicy",
    "LearnedPolicy",
    "RandomPolicy",
    "ReplayPolicy",
    "SchedulePolicy",
    "WaitPolicy",
]
