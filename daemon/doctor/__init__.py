"""What this machine does to the tail: checks that read, judge and never change anything.

/proc, /sys -> host -> processor, memory, system -> findings -> report
NVML        -> nvml -> cards, engine             -> findings -> report
"""
