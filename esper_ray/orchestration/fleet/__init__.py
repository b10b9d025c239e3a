"""The actors: where they sit, what they play, and what happens when one is lost."""
