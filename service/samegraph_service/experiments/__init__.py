"""A/B testing: the routing file, assignment of units to arms, shadows, what is counted about them, and what that says."""
