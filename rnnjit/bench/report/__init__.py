"""Presents a report: as rows, findings, tables, plots and an HTML page."""
