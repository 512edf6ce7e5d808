"""The suite of held-out problems, what is measured on them, and tuned AdamW's stored results."""
