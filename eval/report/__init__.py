"""How results reach a person: terminal tables, learning curves."""
