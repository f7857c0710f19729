"""Small inputs that show what a network does, and whether what is claimed of it is so."""
