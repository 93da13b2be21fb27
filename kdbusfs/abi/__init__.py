"""The kdbus v3 ABI: numbers, layouts, items and the command table.  Pure: bytes in, values out."""
