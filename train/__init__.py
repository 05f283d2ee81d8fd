"""Training: recipes, the two phases, the loop."""
