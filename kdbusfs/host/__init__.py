"""Linux behind `base.ports`: client threads, their memory and descriptors, pools, and the clock."""
