"""`edgeline label`: a local page on which people label photos with the keyboard."""
