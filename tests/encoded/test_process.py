"""What encoding and decoding take of a process: threads and memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SIZE = 24 << 20
BEGIN = """
import os
import torch
from mlstate.digests import Digest
from mlstate.encoded import Base, decode, encode
from mlstate.pickled.source import FileSource
from mlstate.tensors.memory import as_bytes, spec_of

def tensors(size, dtype):
    count = size // dtype.itemsize
    base = (torch.randn(count) * 0.02).to(dtype)
    near = base * (1 + 1e-3 * torch.randn(count).to(dtype))
    near[count // 2 :] = base[count // 2 :]
    near[count // 2 :: 10] *= 1.01  # half of it is sparse
    return spec_of(base), base, near

def write(path, data, spec, base, threads):
    with open(path, "wb") as file:
        for piece in encode(data, spec, base, threads=threads):
            file.write(piece)

def once(path, size, threads, watch, dtype):
    spec, base, near = tensors(size, dtype)
    data, given = as_bytes(near), Base(Digest("1" * 64), as_bytes(base))
    out = memoryview(bytearray(size))
    with watch("encode"):
        write(path, data, spec, given, threads)
    with watch("decode"), open(path, "rb") as file:
        decode(FileSource(file), spec, out, given.data, threads=threads)
    assert Digest.of(out) == Digest.of(data)
"""


def run(code: str, *arguments: object) -> str:
    text = BEGIN + textwrap.dedent(code)
    command = [sys.executable, "-W", "error", "-c", text, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_starts_no_threads_of_its_own(tmp_path, dtype):
    run(
        """
        import sys
        from contextlib import contextmanager
        torch.set_num_threads(1)
        dtype = getattr(torch, sys.argv[2])
        made = tensors(3 << 20, dtype)  # whatever starts threads for that: before they are counted
        torch.set_num_threads(6)

        def count():
            return len(os.listdir("/proc/self/task"))

        @contextmanager
        def watch(what):
            before = count()
            yield
            assert count() == before, what

        globals()["tensors"] = lambda size, dtype: made
        given = made[1], made[2]
        once(sys.argv[1], 3 << 20, 1, watch, dtype)
        before = count()
        torch.add(*given)
        assert count() > before, "torch has no threads: this test would notice nothing"
        """,
        tmp_path / "file",
        dtype,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak of memory")
@pytest.mark.parametrize(("threads", "dtype"), [(1, "float32"), (3, "float32"), (1, "bfloat16")])
def test_each_thread_takes_at_most_8_mib_beside_the_tensors(tmp_path, threads, dtype):
    run(
        """
        import sys
        from contextlib import contextmanager

        def status(name):
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

        @contextmanager
        def watch(what):
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            before = status("VmRSS:")
            yield
            taken.append((what, status("VmHWM:") - before))

        threads, taken = int(sys.argv[2]), []
        dtype = getattr(torch, sys.argv[4])
        once(sys.argv[1], 4 << 20, threads, watch, dtype)
        taken.clear()  # what the first time needs stays for the next
        once(sys.argv[1], int(sys.argv[3]), threads, watch, dtype)
        assert max(most for _, most in taken) <= threads * (8 << 20), taken
        """,
        tmp_path / "file",
        threads,
        SIZE,
        dtype,
    )
