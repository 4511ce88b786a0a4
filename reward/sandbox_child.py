"""The first program of a sandbox: locks itself in, then starts the program that nobody trusts.

Started by `reward.sandbox` as a script of its own, with the standard library only. What holds the
program: namespaces of its own for processes (the whole tree dies with the first one), network (no
interface is up), mounts (a small memory disk with the interpreter's files, read-only), and IPC;
another user; limits on time, memory, files and processes; no way to gain rights.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442  # the same on every architecture; Linux 5.12
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
INSIDE = 65534  # the user that an unprivileged caller becomes

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise what a system call failed with."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system, or bind a folder."""
    arguments = [text.encode() or None for text in (source, target, kind)]
    check(libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def lock(target: str) -> None:
    """Make a mount and all below it read-only, without devices or set-uid programs."""
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    path = target.encode()
    call = (SYS_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, ctypes.byref(attributes), size)
    check(libc.syscall(*call), f"mount_setattr {target}")


def separate(root: bool) -> None:
    """Leave the caller's namespaces; an unprivileged caller gets a user namespace to do so."""
    user, group = os.geteuid(), os.getegid()
    flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET | (0 if root else NEWUSER)
    check(libc.unshare(flags), "unshare")
    if not root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{INSIDE} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{INSIDE} {group} 1")


def build(spec: dict[str, Any]) -> None:
    """A file system with the interpreter's files and the box, and nothing else."""
    new = spec["root"]
    mount("", "/", "", MS_REC | MS_PRIVATE)
    size = f"size={spec['disk']},nr_inodes=8192,mode=0755"
    mount("tmpfs", new, "tmpfs", MS_NOSUID | MS_NODEV, size)
    for path in spec["binds"]:
        target = Path(new + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.islink(path):
            if not target.is_symlink():
                target.symlink_to(os.path.realpath(path))  # through every link between
        elif os.path.isdir(path):
            target.mkdir(exist_ok=True)
            mount(path, str(target), "", MS_BIND | MS_REC)
            lock(str(target))
        elif os.path.isfile(path):
            shutil.copyfile(path, target)
    Path(new, "dev").mkdir(exist_ok=True)  # what is bound may lie there, as a venv below /tmp does
    for name in ("null", "zero", "urandom", "random"):
        Path(new, "dev", name).touch()
        mount(f"/dev/{name}", f"{new}/dev/{name}", "", MS_BIND)
    for name in ("tmp", "box"):
        Path(new, name).mkdir(exist_ok=True)
        os.chmod(f"{new}/{name}", 0o777)
    for name, text in spec["files"].items():
        Path(new, "box", name).write_text(text, encoding="utf-8")
    os.chdir(new)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/box")
    socket.sethostname("sandbox")


def confine(spec: dict[str, Any], root: bool) -> None:
    """Limits, then another user, then no way back."""
    limits = spec["limits"]
    megabyte = 1 << 20
    for kind, most in {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["file"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: megabyte,
        resource.RLIMIT_MSGQUEUE: 0,
    }.items():
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu"] + 1))
    resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
    if root:
        os.setgroups([])
        os.setresgid(spec["user"], spec["user"], spec["user"])
        os.setresuid(spec["user"], spec["user"], spec["user"])  # and with it every capability
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def first(spec: dict[str, Any], root: bool, status: int) -> None:
    """Process 1 inside: builds, starts the program, reaps, reports; its end ends all others."""
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    build(spec)
    program = os.fork()
    if program == 0:
        try:
            confine(spec, root)
            os.execve(spec["command"][0], spec["command"], spec["environment"])
        except BaseException as error:
            report(status, {"setup": f"{type(error).__name__}: {error}"})
            os._exit(125)
    while True:
        ended, code = os.wait()
        if ended == program:
            report(status, {"code": os.waitstatus_to_exitcode(code)})
            os._exit(0)


def report(status: int, message: dict[str, Any]) -> None:
    """Tell `reward.sandbox`; the program itself never holds this descriptor."""
    os.write(status, json.dumps(message).encode() + b"\n")


def main() -> None:
    """Read what to run from the descriptor given, and run it."""
    status = int(sys.argv[1])
    os.set_inheritable(status, False)
    try:
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        spec = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        root = os.geteuid() == 0
        separate(root)
        inner = os.fork()
        if inner == 0:
            first(spec, root, status)
        os.waitpid(inner, 0)
    except BaseException as error:
        report(status, {"setup": f"{type(error).__name__}: {error}"})
        os._exit(125)
    os._exit(0)


if __name__ == "__main__":
    main()
