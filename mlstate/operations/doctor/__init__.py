"""`diagnose`: what a person should know when something does not work."""
