"""Two more ways to say who is eligible, which share no code with the product: one SQL and one plain loop."""
