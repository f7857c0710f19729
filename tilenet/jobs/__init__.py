"""A job: everything that decides the bytes of a run, made from the options, and carried out."""
