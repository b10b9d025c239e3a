"""Policies that learn nothing: the controls that a learned one is held against."""

from esper_ray.policies.scripted import RandomPolicy, SchedulePolicy, WaitPolicy

__all__ = ["RandomPolicy", "SchedulePolicy", "WaitPolicy"]
