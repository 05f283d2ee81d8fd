"""Self-contained HTML pages: their parts, style, curves and pictures."""
