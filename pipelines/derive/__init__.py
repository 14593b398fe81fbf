"""Images in, images out: what is made of images that a scanner has reconstructed itself."""
