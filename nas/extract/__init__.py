"""Other networks out of a finished search, without searching again."""
