"""Fuzzing of every reader of bytes that come from elsewhere.

`targets` has the readers, ``corpus/<target>/`` small inputs to begin with. `mutate` is a fuzzer of
our own, which runs everywhere, the same for the same seed; `guided` is led by the code that an
input reaches, where atheris is installed. `seeds` made the corpus.

A target fails on an exception that is none of mlstate, on more than 512 MiB of memory, and on more
than 10 s for one input.
"""
