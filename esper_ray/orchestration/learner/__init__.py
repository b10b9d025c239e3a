"""The learner: RLlib's PPO and APPO over whole episodes, the policy network, and both on disk."""
