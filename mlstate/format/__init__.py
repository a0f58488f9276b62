"""The format: tensor objects, state objects, plain files and the layout of a folder.

Nothing here reads a file or imports torch, so whatever moves, plans or verifies bytes can use it.
The description for people is docs/format.md.
"""
