"""Program 2: judge optimizers. Baselines, transfer, sharpness, statistics and the report."""

if "." not in __name__:  # the folder of the checkout: be lo_framework.eval, not a second copy
    from lo_framework.namespace import alias

    alias(__name__)
