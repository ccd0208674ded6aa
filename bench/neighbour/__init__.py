"""What another tenant of the machine does to the tail: blocks with it and without it, in turns.

process (starts and ends the other tenant) -> blocks -> judge (ratio and verdict). Tenants to try it with:
hogs, cards.
"""
