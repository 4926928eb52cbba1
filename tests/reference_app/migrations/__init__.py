"""Changes of the database that come with a release: `expand` before it gets traffic, `contract` at the end."""
