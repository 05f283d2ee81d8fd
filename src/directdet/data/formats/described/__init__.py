"""What a dataset.toml says: where sets are, how they are joined and divided, and what becomes of their classes."""
