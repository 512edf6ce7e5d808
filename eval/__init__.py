"""Program 2: judge optimizers. Baselines, transfer, sharpness, statistics and the report."""
