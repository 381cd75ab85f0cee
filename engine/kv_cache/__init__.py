"""Where the keys and values of running sequences are kept, and how much room there is."""
