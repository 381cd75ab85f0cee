"""Files that commands write: tables of results, and folders with a file for each job."""
