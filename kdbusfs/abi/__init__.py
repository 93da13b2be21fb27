"""The ABIs of kdbus: what a client's bytes mean.  Pure: bytes in, values out, and back.

The modules here hold what the core knows: its own vocabulary, the values that a command comes as, and `family`, which
says what an ABI brings.  A package below is one ABI; only `families` names them.
"""
