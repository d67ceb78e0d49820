"""The page that a run ends with: `report.html`, one self-contained file built from `report.json`."""
