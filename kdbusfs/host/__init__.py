"""Linux behind the ports of the core."""
