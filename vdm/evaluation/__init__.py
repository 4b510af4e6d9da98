"""Numbers that say how they were made: protocols, metrics, reports."""
