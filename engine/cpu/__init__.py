"""What is compiled for a CPU; everything here has a plain torch counterpart. See README.md."""
