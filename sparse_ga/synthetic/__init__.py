"""Procedural textured objects, ray-cast views with exact depth and masks, and an oracle predictor on top of them."""
