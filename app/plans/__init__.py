"""Plans: one candidate for each unit, solved on what is known of costs."""
