"""A job: everything that decides the bytes of a run, settled from the options, and carried out."""
