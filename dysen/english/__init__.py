"""A reader of plain English captions: words, phrases, clauses and their times, by rules alone."""
