"""The language of the cluster: commands of the log, frames between processes, and their checks."""
