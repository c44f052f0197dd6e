"""The campaign: does evolution pay? Runs as data, one command that makes the missing ones, one that reports."""
