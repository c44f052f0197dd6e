"""Networks and SB3 policies, one file per family."""
