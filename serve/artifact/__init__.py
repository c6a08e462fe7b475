"""The artifact a device receives: manifest, files, golden samples."""
