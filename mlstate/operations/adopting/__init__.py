"""`adopt`: weights that somebody else wrote, as a state of a store."""
