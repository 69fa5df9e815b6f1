def get_worker_info() -> None:
    """Say that rows are read in the process itself."""
