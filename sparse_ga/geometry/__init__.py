"""Pure geometry: transforms, cameras, two-view geometry, triangulation. Batched functions, no state, no files."""
