"""`bundle` and `unbundle`: states as one tar, for machines without a network."""
