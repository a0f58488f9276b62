"""States in the releases of a GitHub repository."""
