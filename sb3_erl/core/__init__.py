"""What every other room may use: parameters as vectors, seeding by address, checks, interrupts, atomic files, noise table."""
