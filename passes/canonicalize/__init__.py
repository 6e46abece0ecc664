"""Passes from FLOAT to FLOAT that leave fewer ops and fewer forms of each, computing the same function."""
