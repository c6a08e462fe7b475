"""What each URL returns."""
