"""What pictures of any sensor hold: their format, reading them, measuring them, and made ones."""
