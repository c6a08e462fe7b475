"""Whether what a published model sees in use still is what it was tested on."""
