"""Photos of requests that are kept to be labeled, and the labels that people give them."""
