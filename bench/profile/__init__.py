"""Where the daemon's time for a request goes: its own functions, timed one by one on its own objects.

A profiler would count its own work for each call among theirs. Here each stage of a request's way is called
as the daemon calls it, on prepared data, over and over, and the clock is read around it; the whole tick
beside them shows what lies between the stages. All of it is one thread, so everything lies in its core's
caches: what it costs to fetch a request from another core is not in it, and is part of the floor that
    `sigd bench --floor` measures.
"""
