"""Caches that the nodes of a cluster share: the configuration of nginx for them."""
