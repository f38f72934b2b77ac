"""How calls come in and go out: doors, hops, and the talk between gateways and replicas."""
