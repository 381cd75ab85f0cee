"""The connection: where the database is, how its address is written, who else has it open."""
