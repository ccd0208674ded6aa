"""The report: one HTML file that needs nothing else, drawn from the same documents that `--json` writes."""
