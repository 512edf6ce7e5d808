"""Files that survive crashes and refuse damage: atomic writes, sealed tensor files, metric logs."""
