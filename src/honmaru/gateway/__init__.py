"""Wire protocols in, calls out. Reading `app.Gateway.handlers` top to bottom is reading the life of a request."""
