"""The last kdbus, of August 2015: what systemd 220 to 234 speak."""
