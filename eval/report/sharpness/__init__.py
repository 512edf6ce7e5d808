"""The report of a sharpness evaluation: tables, pictures and one self-contained page."""
