"""Engines that work on shards of images: threads of this process, or a cluster."""
