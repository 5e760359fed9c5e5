"""Solving tables of costs that were measured elsewhere: the solver over HTTP and on the command line."""
