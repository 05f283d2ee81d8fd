"""Speed and accuracy side by side: cells measured in processes of their own, tables and a page."""
