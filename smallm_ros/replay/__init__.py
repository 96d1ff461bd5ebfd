"""The recorded robot: a bag goes through the same core and the same engine, at recorded pace."""
