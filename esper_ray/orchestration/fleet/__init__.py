"""The actors: their placement, the episodes that they play, and the replacement of lost ones."""
