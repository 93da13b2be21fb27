"""Linux behind `core.ports`: client threads, their memory and descriptors, pools, and the clock."""
