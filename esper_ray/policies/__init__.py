"""Policies that learn nothing: the controls that a learned one is held against."""

from esper_ray.policies.heuristic import HeuristicPolicy
from esper_ray.policies.scripted import RandomPolicy, ReplayPolicy, SchedulePolicy, WaitPolicy

__all__ = ["HeuristicPolicy", "RandomPolicy", "ReplayPolicy", "SchedulePolicy", "WaitPolicy"]
