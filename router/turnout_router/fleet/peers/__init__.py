"""Several routers in front of the same workers: each tells the others of its requests as they come and go."""
