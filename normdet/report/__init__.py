"""Pictures and pages that show what a run came to."""
