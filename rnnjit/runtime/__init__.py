"""What compiled code needs of the process: threads, compilation once, the object cache, linking."""
