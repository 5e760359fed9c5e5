"""Plans: one candidate for each unit, solved on stored measurements."""
