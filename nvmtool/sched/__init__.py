"""Deciding how much memory each VM of a host should have (T5): what is known (facts), the policy, and what it wants done (plan)."""
