"""The ``meta_train`` of an installed copy, so that ``python -m meta_train`` works there too."""

from lo_framework.namespace import alias

alias(__name__)
