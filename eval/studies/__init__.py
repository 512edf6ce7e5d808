"""The evaluations: what each runs and what its result holds."""
