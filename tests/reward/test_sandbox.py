"""Programs that try to get out of the sandbox: real ones, run for real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from reward import sandbox
from reward.errors import RewardError
from reward.sandbox import MEGABYTE, Limits, check_sandbox, run_python

ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(seconds=20, cpu=20)  # the machine may be busy


def alive(mark: str) -> list[str]:
    """Command lines of processes that carry a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in line:
            found.append(line.decode(errors="replace"))
    return found


def gone(mark: str) -> bool:
    """Whether all of them have ended, a moment later."""
    deadline = time.monotonic() + 30
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(mark)


def test_a_program_runs_and_prints():
    check_sandbox()
    done = run_python("import sys; print(sys.stdin.read()[::-1]); sys.exit(3)", "abc", QUICK)
    assert (done.ended, done.code, done.output) == ("exit", 3, "cba\n")
    assert not done.ok
    assert run_python("print(sum(range(10)))", limits=QUICK).output == "45\n"


def test_an_infinite_loop_is_ended_by_the_clock():
    started = time.monotonic()
    done = run_python("while True: pass", limits=Limits(seconds=1, cpu=60))
    assert done.ended == "timeout"
    assert time.monotonic() - started < 30


def test_sleeping_is_ended_by_the_clock_too():
    assert run_python("import time; time.sleep(60)", limits=Limits(seconds=1)).ended == "timeout"


def test_a_program_that_ignores_signals_is_ended():
    source = (
        "import signal\n"
        "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass\n"
    )
    assert run_python(source, limits=Limits(seconds=60, cpu=1)).ended == "signal"


def test_a_fork_bomb_is_bounded_and_leaves_nothing():
    mark = "align-fork-mark"
    source = (
        "import os, sys, time\n"
        "most = 0\n"
        "try:\n"
        "    while True:\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            time.sleep(60)\n"
        "        most += 1\n"
        "except OSError as error:\n"
        "    print(most, type(error).__name__, flush=True)\n"
        "    time.sleep(60)\n"
    )
    limits = Limits(seconds=5, processes=6)
    job = sandbox.start(["/box/main.py", mark], {"main.py": source}, limits)
    with job:
        sandbox.watch([job], job)
        done = job.finished()
    assert done.output == "5 BlockingIOError\n"
    assert done.ended == "timeout"
    assert gone(mark)


def test_a_daemon_in_a_session_of_its_own_dies_with_its_program():
    mark = "align-daemon-mark"
    source = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
        "time.sleep(0.3)\n"
        "print('left')\n"
    )
    job = sandbox.start(["/box/main.py", mark], {"main.py": source}, QUICK)
    with job:
        started = time.monotonic()
        sandbox.watch([job], job)
        assert job.finished().output == "left\n"
    assert time.monotonic() - started < 30  # it held standard output, and yet nobody waited for it
    assert gone(mark)


def test_memory_is_bounded():
    source = "try:\n    x = bytearray(400 << 20)\nexcept MemoryError:\n    print('no memory')\n"
    assert run_python(source, limits=Limits(memory=128 * MEGABYTE)).output == "no memory\n"
    done = run_python("x = []\nwhile True: x.append(' ' * 1000000)", limits=Limits(memory=1 << 28))
    assert not done.ok
    assert done.ended == "exit"


def test_gigabytes_of_output_are_not_kept():
    started = time.monotonic()
    done = run_python("while True: print('x' * 100000)", limits=Limits(seconds=20, output=100_000))
    assert done.ended == "output"
    assert len(done.output) <= 100_001
    assert time.monotonic() - started < 15


def test_a_disk_full_of_files_is_bounded():
    source = (
        "try:\n"
        "    for n in range(100):\n"
        "        open(f'/tmp/{n}', 'wb').write(b'x' * (900 << 10))\n"
        "except OSError as error: print(n, error.errno)\n"
    )
    done = run_python(source, limits=Limits(file=MEGABYTE))
    assert done.output == "2 28\n"  # two megabytes in all: no space left
    big = (
        "try:\n    open('big', 'wb').write(b'x' * (3 << 20))\nexcept OSError as e: print(e.errno)\n"
    )
    assert run_python(big, limits=Limits(file=MEGABYTE)).output == "27\n"  # too large a file


def test_there_is_no_network():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        source = (
            "import socket\n"
            f"for place in [('127.0.0.1', {listener.getsockname()[1]}), ('1.1.1.1', 53)]:\n"
            "    try:\n"
            "        socket.create_connection(place, timeout=2)\n"
            "        print('connected')\n"
            "    except OSError as error:\n"
            "        print(error.errno)\n"
        )
        done = run_python(source, limits=QUICK)
    assert done.output == "101\n101\n"  # network is unreachable


def test_an_abstract_unix_socket_of_the_host_is_out_of_reach():
    name = f"\0align-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        source = (
            "import socket\n"
            f"try:\n    socket.socket(socket.AF_UNIX).connect({name!r})\n"
            "except OSError as error:\n    print(error.errno)\n"
        )
        assert run_python(source, limits=QUICK).output == "111\n"


def test_nothing_outside_can_be_read_or_written(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    tmp_path.chmod(0o777)
    secret.chmod(0o666)
    source = (
        "import os\n"
        f"targets = [{str(secret)!r}, '/etc/passwd', '/proc/1/environ', '/etc/x',\n"
        "           os.__file__, '/usr/lib/x', '/x']\n"
        "for path in targets:\n"
        "    for mode in 'ra':\n"
        "        try:\n"
        "            open(path, mode)\n"
        "            print(mode, path)\n"
        "        except OSError as error:\n"
        "            if path == '/usr/lib/x' and mode == 'a': print('r readonly', error.errno)\n"
        "print(sorted(os.listdir('/')), os.listdir('/box'))\n"
    )
    done = run_python(source, limits=QUICK)
    *opened, last = done.output.splitlines()
    assert [line for line in opened if not line.startswith("r ")] == []  # nothing for writing
    # Its own library can be read; folders are mounted read-only, whoever owns them.
    assert [Path(line[2:]).name for line in opened] == ["os.py", "readonly 30"]
    assert "'home'" not in last
    assert secret.read_text() == "s3cret"


def test_the_environment_is_clean(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    done = run_python("import os; print(sorted(os.environ), os.getcwd())", limits=QUICK)
    assert "OPENAI" not in done.output
    assert done.output.endswith("/box\n")


def test_no_rights_are_left():
    source = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "found = []\n"
        "found.append(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None))\n"
        "found.append(libc.umount2(b'/usr/lib', 2))\n"
        "found.append(libc.setuid(0))\n"
        "found.append(libc.kill(1, 9))\n"
        "found.append(libc.ptrace(16, 1, 0, 0))\n"
        "print(found, os.getuid() != 0)\n"
    )
    done = run_python(source, limits=QUICK)
    assert done.output == "[-1, -1, -1, -1, -1] True\n", done


def test_programs_do_not_see_each_other():
    source = "import os\nfor n in range(3, 9): os.kill(n, 0)"
    job = sandbox.start(["-c", "import time; time.sleep(30)"], {}, QUICK)
    with job:
        assert "No such process" in run_python(source, limits=QUICK).errors


def test_files_of_a_sandbox_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_python("open('left', 'w').write('x')", limits=QUICK)
    run_python("while True: pass", limits=Limits(seconds=1))
    assert list(tmp_path.iterdir()) == []


def test_packages_only_when_wanted():
    source = "import numpy; print(numpy.arange(3).sum())"
    assert "No module named 'numpy'" in run_python(source, limits=QUICK).errors
    roomy = Limits(seconds=90, memory=1 << 31)
    done = run_python(source, limits=roomy, packages=True)
    assert done.output == "3\n", done.errors


def test_an_environment_below_tmp_serves_too():
    code = (
        "from reward.sandbox import Limits, run_python\n"
        "source = \"import numpy; open('/tmp/mine', 'w'); print(numpy.arange(3).sum())\"\n"
        "done = run_python(source, limits=Limits(seconds=90, memory=1 << 31), packages=True)\n"
        "print(done.output or done.errors, end='')\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        place = Path(folder, "venv")
        place.symlink_to(sys.prefix)
        command = [place / "bin" / "python", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "3\n", done.stderr


def test_where_it_cannot_be_locked_in_nothing_runs(monkeypatch, tmp_path):
    broken = tmp_path / "child.py"
    text = sandbox.CHILD.read_text()
    # A kernel that forbids it: unshare fails as it does in a plain container.
    broken.write_text(text.replace("libc.unshare(flags)", "libc.unshare(-1)"))
    monkeypatch.setattr(sandbox, "CHILD", broken)
    with pytest.raises(RewardError, match=r"cannot be locked in .*unshare.* none was run"):
        run_python("print('ran')", limits=QUICK)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(RewardError, match="this is darwin"):
        run_python("print('ran')", limits=QUICK)
