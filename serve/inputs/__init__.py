"""Images from files, folders, streams and cameras."""
