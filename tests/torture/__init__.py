"""Attacks on what the documentation promises.

    make torture-short            a part, the same each time, in minutes; CI runs it
    make torture                  all by turns for an hour, with seeds that grow
    TORTURE_MINUTES=10 make torture
    python -m tests.torture --only rot "lying servers" --turn 100

The long run prints what was done and found, as a table and as JSON (``torture.json``); it ends with
1 if anything failed, and says with which seed. Each attack is a module, its short part a test of
the same name:

`faults`
    Each of the `operations` in a child process, with an error, a short write or a kill at each
    system call that changes something. The shim (`shim.c`, preloaded) counts and spoils the
    calls; `server` is the warm process that forks the children.
`cuts`
    Power cuts. The shim's log of an operation (`recording`) is replayed up to any step, without
    what was not flushed by then.
`disks`
    Power cuts of ext4, XFS and btrfs on loop devices.
`full`
    The operations on a disk with room for a part.
`races`
    Processes on one store or one cache; `history` holds what they did and saw against a model.
`rot`
    Damaged and replaced files; everything reads them, and they are mended.
`lies`
    Mirrors that lie at random.
`fuzz`
    Readers of foreign bytes, with a corpus in ``corpus/``.
`buckets`
    Kills at the requests to moto and Ceph.
`soak`
    Memory, descriptors, threads and temporaries stay flat.

What is needed and not there, a compiler or the right to mount, makes a test skip, and the long run
say what it left out. `states` has the states whose bytes are known; `parts` puts all together.
"""
