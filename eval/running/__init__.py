"""Computing cells: what one is, the pool that computes them, the folder that keeps them."""
