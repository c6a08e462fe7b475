"""What a network looks at: class activation maps, input gradients, feature maps, and a map of its embeddings."""
