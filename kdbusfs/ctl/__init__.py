"""kdbusctl, the command for people: look at buses, talk to connections, hold names, buses and endpoints."""
