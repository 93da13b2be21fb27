"""Shared by all buses that are served by ioctls on files: the call (a command in progress), and ports to the system."""
