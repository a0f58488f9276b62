"""The bytes: tensor objects, state objects and the folder layout, as pure functions and values.

Nothing here reads a file or imports torch, so whatever moves, plans or verifies bytes can use it.
The description for people is docs/format.md.
"""
