"""Telling a client from what only carries its bytes: descriptors, and so shared memory, end at a forwarder.

A daemon that grants shared memory to an SSH tunnel would give it to sshd, which throws the descriptors away.
Such a peer can be known by the name of its process, where /proc shows it: in a container, or as a service
with ProtectProc=, the daemon may see nothing. Then the client finds out, by the descriptors that it did not
get.
"""

from __future__ import annotations

from typing import Final

_COMM_BYTES_MAX: Final = 15
_FORWARDERS: Final = {
    "sshd": "SSH",
    "sshd-session": "SSH",  # what sshd is called here from OpenSSH 9.8 on
    "ssh": "SSH",
    "dropbear": "SSH",
    "dbclient": "SSH",
    "socat": "socat",
    "systemd-socket-proxyd"[:_COMM_BYTES_MAX]: "a proxy",
}
"""By the name of the process that connected (its comm): what its user calls it."""


def why_not_shared_memory(pid: int) -> str:
    """Why descriptors that are passed to this process do not reach the client; empty where they do, or where
    it is not known.

    The words are short enough for the reason of a Reject.
    """
    try:
        # Bytes: a process may call itself whatever it likes.
        with open(f"/proc/{pid}/comm", "rb") as file:
            comm = file.read(_COMM_BYTES_MAX + 1).rstrip(b"\n")
    except OSError:
        return ""
    forwarder = _FORWARDERS.get(comm.decode("utf-8", "replace"))
    if forwarder is None:
        return ""
    return f"shared memory cannot cross {forwarder}: ask for transport 0 (stream)"
