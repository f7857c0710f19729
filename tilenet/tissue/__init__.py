"""Where a slide has tissue: bare glass is not computed."""
