"""A workstation, computed: what fits on it, how fast it can be, what it draws, and what has to change.

Pure: the only input is the machine's TOML, beside two tables of sourced figures. Nothing here imports another
room.

figures, ranges -> catalogue (parts.toml, models.toml) -> memory, speed, training, power, links, placement ->
verdicts
machine (MACHINE.toml)                                                                     verdicts -> table, document
"""
