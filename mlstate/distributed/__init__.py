"""Saving and loading by all ranks of a process group together.

Above the stores, which call it when a state has DTensors in it or a group is given.
"""
