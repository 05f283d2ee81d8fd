"""Who watches a run: the protocol, the terminal, and loggers."""
