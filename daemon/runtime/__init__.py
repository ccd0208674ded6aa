"""The process and its loop: cores, clocks, child processes, logs."""
