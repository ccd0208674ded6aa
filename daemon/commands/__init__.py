"""The commands of `sigd` that run or ask a daemon, one file each."""
