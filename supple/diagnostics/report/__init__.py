"""The report: one self-contained page made from the document that ``report.json`` holds."""
