"""Objects (instance labels): connected components, touching ones separated, planes linked into volumes."""
