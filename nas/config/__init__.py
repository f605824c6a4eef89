"""The configuration of a run: its schema, how it is composed and checked, and what runs save."""
