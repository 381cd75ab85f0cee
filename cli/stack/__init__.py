"""The stack: the processes on this machine that `tidemill up` starts and stops."""
