"""Processes of this machine: what `tidemill up` starts and stops."""
