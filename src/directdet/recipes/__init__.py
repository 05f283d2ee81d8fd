"""What can be trained: phases, recipes with their sources, and the tables of the two papers. Does not import torch."""
