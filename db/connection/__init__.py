"""The connection: the database's address, its redaction, and other users of an SQLite file."""
