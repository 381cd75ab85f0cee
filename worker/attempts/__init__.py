"""One attempt at one job, the dialogue before a chat job, and the attempt's spans."""
