"""The recipes of direct pre-training, its phases, and where their constants come from."""
