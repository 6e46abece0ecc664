"""INTEGER to INTEGER: fewer ops and fewer roundings."""
