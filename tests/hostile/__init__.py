"""Programs that attack a mounted domain for longer than a test may take; each says how it is run and exits with 1 if
somebody was harmed.
"""
