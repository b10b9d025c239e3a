"""Parallel episodes: Ray actors that own hosts, a central learner, run folders. The only layer that imports ray.

Nothing is imported here, so that the command line can read `orchestration.config` without loading torch and Ray.
"""
