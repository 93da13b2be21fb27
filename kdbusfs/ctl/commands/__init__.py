"""The commands of kdbusctl, one a module: each has a `command`, which `main.SECTIONS` names."""
