"""Program 1: meta-train a learned optimizer on a pool of small problems."""

if "." not in __name__:  # the folder of the checkout: be lo_framework.meta_train, not a second copy
    from lo_framework.namespace import alias

    alias(__name__)
