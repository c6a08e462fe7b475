"""Write an artifact and publish it to a store."""
