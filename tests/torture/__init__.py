"""Attacks on what the documentation promises.

    make torture-short            a part, the same each time, in minutes; CI runs it
    make torture                  all by turns for an hour, with seeds that grow
    TORTURE_MINUTES=10 make torture

The long run prints what was done and found, as a table and as JSON (``torture.json``). Each part is
a module with the attack, and a test module of the same name with the short part of it:

`faults`
    Each operation of `operations` in a child process, with an error, a short write or a kill at
    each system call that changes something. The shim (`shim.c`, preloaded) counts and spoils the
    calls; `server` is the warm process that forks the children.
"""
