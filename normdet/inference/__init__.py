"""A model on images of any size: cut into tiles, in batches, and merged across seams."""
