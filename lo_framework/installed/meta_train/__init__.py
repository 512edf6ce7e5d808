"""What an installed copy has as ``meta_train``, so that ``python -m meta_train`` works there too."""

from lo_framework.namespace import alias

alias(__name__)
