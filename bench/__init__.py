"""Measuring: schedules, load generators, floors, reports, replay of captures. Never loaded by the serving
process."""
