"""What every bus that is served by ioctls on files needs: a command on its way, and the ports to the system below."""
