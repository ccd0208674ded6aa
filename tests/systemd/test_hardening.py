"""What the unit allows and forbids, tried out inside of it; and the drop-ins."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.systemd.machine import COMMAND, PYTHON, Machine
from tests.systemd.test_operating import ask, messages

from sigd.wire.status import Status

pytestmark = pytest.mark.systemd

PROBE = """
import array, ctypes, errno, fcntl, json, mmap, os, resource, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
found = {}

def attempt(call):
    name = call.__name__
    try:
        call()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
    return call

def checked(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "")

@attempt
def lock_memory():
    checked(libc.mlockall(2))
    checked(libc.munlockall())
@attempt
def lock_a_page(): checked(libc.mlock(ctypes.create_string_buffer(4096), 4096))
@attempt
def choose_a_core(): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
@attempt
def give_up_priority():
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
@attempt
def raise_open_files():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2048), hard))
@attempt
def share_a_sealed_region():
    region = os.memfd_create("ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(region, 8192)
    fcntl.fcntl(region, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    mmap.mmap(region, 8192)
    bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    here, there = socket.socketpair()
    socket.send_fds(here, [b"x"], [region, bell])
    assert len(socket.recv_fds(there, 1, 2)[1]) == 2
@attempt
def keep_state(): open("/var/lib/sigd/kept", "w").write("x"); os.unlink("/var/lib/sigd/kept")
@attempt
def start_threads():
    import threading; thread = threading.Thread(target=int); thread.start(); thread.join()

@attempt
def write_elsewhere(): open("/etc/sigd/x", "w")
@attempt
def write_beside_the_sockets(): open("/run/sigd/x", "w")
@attempt
def read_homes(): os.listdir("/root")
@attempt
def talk_to_the_network(): socket.socket(socket.AF_INET)
@attempt
def make_code(): mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
@attempt
def be_realtime(): os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
@attempt
def be_favoured(): os.setpriority(os.PRIO_PROCESS, 0, -5)
@attempt
def be_root(): os.setuid(0)
@attempt
def mount(): checked(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None))
@attempt
def make_a_namespace(): checked(libc.unshare(0x10000000))
@attempt
def read_the_kernel_log(): open("/dev/kmsg")
@attempt
def look_into_others(): os.listdir("/proc/1/fd")

found["devices"] = sorted(os.listdir("/dev"))
found["processes"] = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
print(json.dumps(found))
"""

NEEDED = (
    *("lock_memory", "lock_a_page", "choose_a_core", "raise_open_files", "share_a_sealed_region"),
    *("keep_state", "start_threads", "give_up_priority"),
)


@pytest.fixture
def found(machine: Machine) -> dict[str, object]:
    """What came of each attempt, made with the sandbox of the unit itself."""
    machine.start_sigd()
    machine.write("/usr/local/lib/probe.py", PROBE)
    unit = machine.said("cat", "/etc/systemd/system/sigd.service")
    lines = [
        line
        for line in unit.splitlines()
        if not line.startswith(("Requires=", "After=", "Watchdog", "Restart"))
    ]
    probe = "\n".join(lines).replace("Type=notify", "Type=oneshot")
    probe = probe.replace(
        f"{COMMAND} serve --config /etc/sigd/sigd.toml", f"{PYTHON} /usr/local/lib/probe.py"
    )
    machine.write("/etc/systemd/system/probe.service", probe)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "probe.service")
    said = machine.said("journalctl", "--unit=probe.service", "--output=cat", "--no-pager")
    (line,) = [line for line in said.splitlines() if line.startswith("{")]
    result: dict[str, object] = json.loads(line)
    return result


def test_the_sandbox_lets_through_what_a_daemon_needs_and_nothing_else(found: dict[str, object]) -> None:
    devices, processes = found.pop("devices"), found.pop("processes")
    assert isinstance(devices, list)
    assert isinstance(processes, list)
    # With little memory to lock (a container that may not raise its limit) the kernel says ENOMEM; a filter
    # says EPERM.
    assert found.pop("lock_memory") in ("done", "ENOMEM")
    done = {name for name, outcome in found.items() if outcome == "done"}
    assert done == set(NEEDED) - {"lock_memory"}
    assert {"EROFS", "EPERM", "EACCES", "EAFNOSUPPORT", "ENOENT"} >= set(found.values()) - {"done"}
    assert (
        {"null", "urandom"}
        <= set(devices)
        <= {
            *(
                "char",
                "core",
                "fd",
                "full",
                "hugepages",
                "log",
                "mqueue",
                "null",
                "ptmx",
                "pts",
                "random",
                "shm",
            ),
            *("stderr", "stdin", "stdout", "tty", "urandom", "zero", "block", "disk", "initctl", "console"),
        }
    )
    assert 1 not in processes, "other users' processes are not to be seen"


def test_the_daemon_runs_with_all_of_it(machine: Machine) -> None:
    machine.start_sigd(configuration='idle = "spin"\ncpu = 0\nintra_op_threads = 2\n')
    with machine.connect() as client:
        assert ask(client) == Status.OK
    pid = machine.daemon_pid()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapBnd"], 16) == 0
    assert status["Cpus_allowed_list"].strip() == "0"
    said = [message for _, message in messages(machine)]
    locked = status["VmLck"].split()[0] != "0"
    assert locked != any(message.startswith("memory is not locked") for message in said)


def test_its_exposure_is_low_on_the_machine_itself(machine: Machine) -> None:
    machine.start_sigd()
    done = machine.run("systemd-analyze", "security", "--threshold=20", "--no-pager", "sigd.service")
    assert "OK" in done.stdout or "SAFE" in done.stdout


def test_realtime(machine: Machine) -> None:
    core = str(max(os.sched_getaffinity(0)))
    machine.start_sigd("--realtime", core, configuration='idle = "block"\n')
    pid = machine.daemon_pid()
    assert os.sched_getscheduler(pid) == os.SCHED_FIFO
    assert os.sched_getparam(pid).sched_priority == 1
    assert os.sched_getaffinity(pid) == {int(core)}
    with machine.connect() as client:
        assert ask(client) == Status.OK
    assert not [message for _, message in messages(machine) if "real-time priority" in message]


def test_realtime_priority_for_a_loop_that_spins_is_warned_of(machine: Machine) -> None:
    """Nothing but the start is looked at: on a machine with few cores it would be in the way of all."""
    machine.write("/etc/sigd/sigd.toml", 'idle = "spin"\n')
    machine.run(COMMAND, "install-service", "--realtime", str(max(os.sched_getaffinity(0))))
    machine.write("/etc/systemd/system/sigd.service.d/check.conf", CHECK_ONLY)
    machine.run("systemd-sysusers")
    machine.run("systemd-tmpfiles", "--create")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "sigd.service")
    warnings = [message for priority, message in messages(machine) if priority == 4]
    assert any('idle = "spin" at real-time priority' in message for message in warnings), messages(machine)


CHECK_ONLY = f"""[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart={COMMAND} serve --config /etc/sigd/sigd.toml --check
"""


def test_the_gpus_drop_in_keeps_a_daemon_hardened(machine: Machine) -> None:
    """There is no GPU here: what it allows is there, what it does not need stays forbidden, and the daemon
    runs."""
    machine.start_sigd("--gpu")
    with machine.connect() as client:
        assert ask(client) == Status.OK
    assert machine.show("sigd.service", "PrivateDevices") == "no"
    assert machine.show("sigd.service", "DevicePolicy") == "closed"
    assert "char-nvidia* rw" in machine.show("sigd.service", "DeviceAllow")
    assert machine.show("sigd.service", "MemoryDenyWriteExecute") == "no"
    assert "CUDA_CACHE_PATH=/var/cache/sigd" in machine.show("sigd.service", "Environment")
    assert (machine.here / "var/cache/sigd").is_dir()
    machine.run("systemd-analyze", "security", "--threshold=20", "--no-pager", "sigd.service")


def test_metrics_on_a_loopback_port(machine: Machine) -> None:
    listen = 'metrics_listen = "127.0.0.1:9464"\n'
    machine.start_sigd("--metrics", configuration=listen)
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    assert "sigd_model_info{" in machine.said(PYTHON, "-c", fetch)
    machine.run("systemd-analyze", "security", "--threshold=20", "--no-pager", "sigd.service")


def test_without_a_network_a_metrics_port_is_refused_with_the_reason(machine: Machine) -> None:
    machine.write("/etc/sigd/sigd.toml", 'metrics_listen = "127.0.0.1:9464"\n')
    assert machine.run(COMMAND, "install-service", "--enable", check=False).returncode == 3
    errors = [message for priority, message in messages(machine) if priority <= 3]
    assert any("metrics" in message for message in errors), errors
