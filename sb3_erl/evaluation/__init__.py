"""Who steps the environments; the same answer from each back-end."""
