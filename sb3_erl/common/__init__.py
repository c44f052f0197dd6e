"""What algorithms share: bases, policies, parameters, seeding, checks."""
