"""Models as graphs: execution, units of choice, derived weights."""
