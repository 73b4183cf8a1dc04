"""A/B testing: the routing file, assignment of units to arms, shadows, and what is counted about them."""
