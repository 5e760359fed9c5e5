"""One file for each schema change, in order."""
