"""Documents: splitting, layout and coverage of whole texts."""
