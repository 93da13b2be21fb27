"""Fuzzers of what decodes bytes of clients, and the commands they begin with; `make fuzz` runs them."""
