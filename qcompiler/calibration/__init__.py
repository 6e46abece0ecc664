"""Calibration: the statistics that passes ask for, gathered in one sweep over the data with memory that does not grow with them."""
