"""The report of a run: a table for the terminal, `report.json` for machines, one self-contained page for people."""
