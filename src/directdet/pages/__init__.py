"""Self-contained HTML pages: elements, style, charts and images."""
