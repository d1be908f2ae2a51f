"""Procedural objects: random solids as distance fields, rendered in batches in pure torch with exact truth."""
