"""Encoded objects: a tensor's bytes as the difference to another tensor's, or alone, and back.

What is in such a file is in docs/format.md; its head and index are in `mlstate.format`. Here its
blocks are made and read: bytes in, bytes out, of no store and under no name. Imports torch, whose
operations are given so few elements that it starts no threads of its own; these and zstd release
the interpreter's lock, so that blocks are worked on by several threads.
"""

from mlstate.encoded.decode import Source, decode, decode_verified, read_head
from mlstate.encoded.encode import Base, encode, estimated_size, saves_enough
from mlstate.encoded.nearness import distance, sample_ranges

__all__ = [
    "Base",
    "Source",
    "decode",
    "decode_verified",
    "distance",
    "encode",
    "estimated_size",
    "read_head",
    "sample_ranges",
    "saves_enough",
]
