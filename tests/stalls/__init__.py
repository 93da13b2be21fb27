"""How much cpu time the core takes at the limits before it lets others be served: `make stalls`."""
