"""Program 1: meta-train a learned optimizer on a pool of small problems."""
