"""kdbus v3 as proposed in January 2015."""
