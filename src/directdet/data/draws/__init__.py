"""Which images an epoch draws: the orders, and how often rare classes are drawn."""
