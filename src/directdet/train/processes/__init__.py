"""What several processes that train together agree on."""
