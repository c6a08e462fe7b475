"""Which published version is in use: channels, and the test that decides about a new version."""
