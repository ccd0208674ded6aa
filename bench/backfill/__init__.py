"""Scores captures of many instruments and days as a live daemon would, into Parquet files that are each
written once."""
