"""The flight recorder: every request that is answered, and its answer, kept on disk.

    tap       after an answer: copies it and its request into the ring, a few hundred nanoseconds
    ring      memory that outlives the daemon, a file of tmpfs: no store into it ever waits for a disk
    writer    a process: from the ring to segments, with checksums; the only one that waits for disks

docs/recordings.md has why the daemon does not map the segments themselves.
"""
