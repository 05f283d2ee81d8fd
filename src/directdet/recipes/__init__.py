"""What can be trained: phases, recipes with their sources, and what the papers published. Imports no torch."""
