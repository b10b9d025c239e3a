"""Policies on held-out hosts: evaluation, controls, comparison."""
