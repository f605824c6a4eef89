"""A network of the user's own, made smaller: what in it may be searched, and how."""
