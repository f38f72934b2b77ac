"""What runs in a Ray Serve replica: engines, and the port through which gateways reach them."""
