"""The checks of every task: a folder for each exercise set, a file for each task."""
