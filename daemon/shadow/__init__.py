"""A second model beside one that is served: it runs the same rows, its answers are compared, and none is ever
sent.

    ring        the recorder's own: the hot path copies what it has answered into it, and never waits
    process     a process of its own on other cores: rows from the ring through the shadow, in idle time
    comparison  what it keeps of each pair of answers
    statistics    how the comparison stands, in memory that the daemon reads when it is asked
    supervisor  the daemon's side: starts the processes, sees that they run, and tells

docs/decisions has why.
"""
