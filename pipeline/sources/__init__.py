"""Find the image files of a data set, in each layout that it may have."""
