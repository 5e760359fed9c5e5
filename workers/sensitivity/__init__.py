"""What each candidate costs in each unit, everything else float."""
