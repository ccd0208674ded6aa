"""What this machine does to the tail: checks that read, judge and never change anything.

/proc, /sys -> host         -> system, processor, memory       -> findings -> report
NVML        -> nvml -> gpus -> cards, card_speed, card_errors  -> findings -> report
manifest                    -> engine                          -> findings -> report
"""
