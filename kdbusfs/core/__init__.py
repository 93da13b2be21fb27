"""The bus itself: domain, buses, endpoints, connections and all they do to each other.

Synchronous and without I/O.  What it needs of the world it reaches through `ports`; what it has to tell the world
it leaves in `Domain.changed` (handles whose readiness changed) and in the answers it gives.
"""
