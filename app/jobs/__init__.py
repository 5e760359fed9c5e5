"""Jobs: submitted, watched, cancelled."""
