"""A system that lacks what Windows lacks, for what runs in a process of its own.

`on_windows` runs code in which the modules of mlstate, and `pathlib`, see an `os`, `mmap`, `ctypes`
and `sys` of Windows: no descriptor of a folder and nothing relative to one, no reading and writing
at a position, no users and modes, no `fcntl`; files that are opened as text unless O_BINARY says
otherwise; a file that is open or mapped is neither removed nor renamed nor replaced, and one that
is read-only is neither removed nor replaced; a rename replaces nothing; what is not open for
writing is not flushed. Other packages see this machine: that they work on Windows is for them to
say.

It cannot show: drive letters, backslashes, names that differ in case alone, the locks of Windows
(filelock's locks for this system stand in), what a virus scanner does, and what a real Windows does
besides.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import mmap
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_ABSENT = frozenset({"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty"})
_LACKS = frozenset(
    """
    O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_LARGEFILE O_NDELAY O_NOATIME O_NOCTTY
    O_NOFOLLOW O_NONBLOCK O_PATH O_RSYNC O_SYNC O_TMPFILE chown chroot confstr copy_file_range
    ctermid fchdir fchmod fchown fdatasync fork forkpty fpathconf fstatvfs fwalk get_blocking
    getegid geteuid getgid getgrouplist getgroups getloadavg getpgid getpgrp getpriority
    getresgid getresuid getsid getuid getxattr initgroups killpg lchown listxattr lockf major
    makedev memfd_create minor mkfifo mknod nice openpty pathconf pidfd_open pipe2 pread preadv
    pwrite pwritev readv register_at_fork removexattr sendfile set_blocking setpgid setpriority
    setsid setxattr splice statvfs sync sysconf tcgetpgrp ttyname uname wait wait3 wait4 waitid
    writev
    """.split()  # noqa: SIM905
)
_BEGINNINGS = (
    *("posix_", "sched_", "POSIX_", "SCHED_", "RWF_", "XATTR_", "SPLICE_", "P_PID"),
    *(
        "WCO",
        "WEX",
        "WIF",
        "WNO",
        "WST",
        "WTE",
        "WUN",
        "O_ACC",
        "eventfd",
        "sete",
        "setg",
        "setr",
        "setu",
    ),
)
_BINARY, _NOINHERIT = 1 << 28, 1 << 29  # bits that the real call never gets to see
_GRANULARITY = 1 << 16


def on_windows(
    code: str, *arguments: object, links: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run code where mlstate finds what Windows has.

    Args:
        code: Python; it need not import `sys`.
        arguments: ``sys.argv[1:]``.
        links: Whether files can have a second name, as on NTFS and not on FAT.
    """
    begin = f"from tests.support.windows import begin; begin(links={links})\nimport sys\n"
    command = [sys.executable, "-W", "error", "-c", begin + textwrap.dedent(code)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )


def begin(*, links: bool = True) -> None:
    """Let mlstate, which is not imported yet, find what Windows has, for good."""
    import pathlib

    import filelock  # before it is taken for a system without locks  # noqa: F401

    if found := [name for name in sys.modules if name.partition(".")[0] == "mlstate"]:
        raise RuntimeError(f"{found[0]} has been imported already")
    system = _windows_os(links)
    shown: dict[str, ModuleType] = {
        "os": system,
        "mmap": _windows_mmap(),
        "ctypes": _windows_ctypes(),
        "sys": _WindowsSys("sys"),
    }
    really = builtins.__import__

    def importing(  # its parameters have the names that programs may use
        name: str,
        globals: dict[str, Any] | None = None,  # noqa: A002
        locals: Any = None,  # noqa: A002
        fromlist: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> ModuleType:
        asking = (globals or {}).get("__name__") or ""
        if level == 0 and asking.partition(".")[0] == "mlstate":
            if name in _ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in shown:
                return shown[name]
        return really(name, globals, locals, fromlist or (), level)

    builtins.__import__ = importing  # type: ignore[assignment]
    builtins.open = io.open = _open_file  # type: ignore[assignment]
    paths = _without(system, lambda _: False)
    paths.name = os.name  # type: ignore[attr-defined]  # else it makes a `WindowsPath`
    for module in [pathlib, *filter(None, map(sys.modules.get, ("pathlib._local",)))]:
        module.os = paths  # type: ignore[attr-defined]
        module.io = io  # type: ignore[attr-defined]


_really_open = io.open


def _open_file(file: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return _really_open(file, *arguments, **options)
    except IsADirectoryError as error:
        raise PermissionError(errno.EACCES, "Permission denied", error.filename) from None


class _WindowsSys(ModuleType):
    """The real `sys`, of another platform."""

    platform = "win32"

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(sys, name, value)


def _without(module: ModuleType, lacks: Callable[[str], bool]) -> ModuleType:
    shown = ModuleType(module.__name__)
    vars(shown).update({name: value for name, value in vars(module).items() if not lacks(name)})
    return shown


def _windows_ctypes() -> ModuleType:
    shown = _without(ctypes, lambda _: False)

    def load(name: str | None, *arguments: Any, **options: Any) -> ctypes.CDLL:
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        return ctypes.CDLL(name, *arguments, **options)

    shown.CDLL = load  # type: ignore[attr-defined]
    return shown


def _windows_mmap() -> ModuleType:
    shown = _without(mmap, lambda name: name.startswith(("PROT_", "MAP_", "MADV_")))

    class Map(mmap.mmap):
        def __new__(
            cls,
            fileno: int,
            length: int,
            tagname: str | None = None,
            access: int = mmap.ACCESS_DEFAULT,
            offset: int = 0,
        ) -> Map:
            if offset % _GRANULARITY:
                raise OSError(errno.EINVAL, "The parameter is incorrect")
            return super().__new__(cls, fileno, length, access=access, offset=offset)

    shown.mmap, shown.ALLOCATIONGRANULARITY = Map, _GRANULARITY  # type: ignore[attr-defined]
    return shown


def _refused(path: Any) -> PermissionError:
    return PermissionError(errno.EACCES, "The process cannot access the file", os.fspath(path))


def _check_free(path: Any) -> None:
    """Refuse a file that this process has open or mapped, or a folder with such a file in it."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    below = os.path.realpath(path) + "/"
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            same = os.path.samestat(os.fstat(int(descriptor)), found)
            if same or os.readlink(f"/proc/self/fd/{descriptor}").startswith(below):
                raise _refused(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
    with _really_open("/proc/self/maps", "rb") as maps:
        if any(line.split()[4] == b"%d" % found.st_ino for line in maps) and found.st_ino:
            raise _refused(path)


def _check_may_go(path: Any) -> None:
    try:
        if not os.lstat(path).st_mode & (stat.S_IWUSR | stat.S_IFDIR):
            raise _refused(path)
    except FileNotFoundError:
        pass


class _Entry:
    """An entry of a folder, which knows no more of a file than the folder does."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self._entry = entry
        self.name, self.path = entry.name, entry.path
        self.is_dir, self.is_file, self.is_symlink = entry.is_dir, entry.is_file, entry.is_symlink

    def __fspath__(self) -> str:
        return self.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        found = _as_windows_says(self._entry.stat(follow_symlinks=follow_symlinks))
        return os.stat_result((found[0], 0, 0, 0, *found[4:10]), _times(found))


class _Entries:
    def __init__(self, path: Any) -> None:
        self._entries = os.scandir(path)

    def __iter__(self) -> Iterator[_Entry]:
        return map(_Entry, self._entries)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    close = __exit__


def _times(found: os.stat_result) -> dict[str, Any]:
    names = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
    return {name: getattr(found, name) for name in names}


def _as_windows_says(found: os.stat_result) -> os.stat_result:
    mode = stat.S_IFMT(found.st_mode)
    mode |= 0o777 if stat.S_ISDIR(mode) else 0o666 if found.st_mode & stat.S_IWUSR else 0o444
    return os.stat_result((mode, *found[1:4], 0, 0, *found[6:10]), _times(found))


def _no_such_system(path: Any) -> None:
    if os.fspath(path).startswith(("/proc", "/dev/fd")):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)


def _windows_os(links: bool) -> ModuleType:  # noqa: C901  # one small function a call
    shown: Any = _without(os, lambda name: name in _LACKS or name.startswith(_BEGINNINGS))

    def no_folder(**folders: int | None) -> None:
        if any(folder is not None for folder in folders.values()):
            raise NotImplementedError("dir_fd unavailable on this platform")

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        no_folder(dir_fd=dir_fd)
        ours = sys._getframe(1).f_globals["__name__"].startswith("mlstate")
        if ours and not flags & _BINARY and path != os.devnull:
            raise AssertionError(f"{path} is opened as text, in which line ends change")
        _no_such_system(path)
        if os.path.isdir(path):
            raise _refused(path)
        really = flags & ~(_BINARY | _NOINHERIT) | os.O_CLOEXEC
        return os.open(path, really, 0o666 if mode & stat.S_IWUSR else 0o444)

    def stat_(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Any:
        no_folder(dir_fd=dir_fd)
        return _as_windows_says(os.stat(path, follow_symlinks=follow_symlinks))

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        no_folder(dir_fd=dir_fd)
        if os.path.isdir(path) and not os.path.islink(path):
            raise _refused(path)
        _check_free(path)
        _check_may_go(path)
        os.unlink(path)

    def replace(
        source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        no_folder(src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        for path in (source, target):
            _check_free(path)
        _check_may_go(target)
        os.replace(source, target)

    def rename(
        source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        no_folder(src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        _check_free(source)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists", source, None, target)
        os.rename(source, target)

    def link(source: Any, target: Any, **options: Any) -> None:
        if not links:
            raise OSError(errno.EINVAL, "Incorrect function", source, None, target)
        os.link(source, target)

    def symlink(source: Any, target: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EINVAL, "A required privilege is not held by the client", target)

    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        no_folder(dir_fd=dir_fd)
        os.mkdir(path)

    def utime(path: Any, times: Any = None, *, follow_symlinks: bool = True, **more: Any) -> None:
        if isinstance(path, int):
            raise TypeError("utime: path should be string, bytes or os.PathLike, not int")
        if not follow_symlinks:
            raise NotImplementedError("utime: follow_symlinks unavailable on this platform")
        os.utime(path, times, **more)

    def fsync(descriptor: int) -> None:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        os.fsync(descriptor)

    def listed(path: Any = ".") -> Any:
        if isinstance(path, int):
            raise TypeError("path should be string, bytes, os.PathLike or None, not int")
        _no_such_system(path)
        return path

    shown.name, shown.O_BINARY, shown.O_NOINHERIT = "nt", _BINARY, _NOINHERIT
    shown.open, shown.stat, shown.unlink, shown.remove = open_, stat_, unlink, unlink
    shown.lstat = lambda path, *, dir_fd=None: stat_(path, dir_fd=dir_fd, follow_symlinks=False)
    shown.fstat = lambda descriptor: _as_windows_says(os.fstat(descriptor))
    shown.replace, shown.rename, shown.link, shown.symlink = replace, rename, link, symlink
    shown.mkdir, shown.utime, shown.fsync = mkdir, utime, fsync
    shown.listdir = lambda path=".": os.listdir(listed(path))
    shown.scandir = lambda path=".": _Entries(listed(path))
    shown.supports_dir_fd = shown.supports_effective_ids = frozenset()
    shown.supports_fd, shown.supports_follow_symlinks = {stat_}, {stat_}
    return shown
