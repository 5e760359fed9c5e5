"""Models: registered files and what intake found in them."""
