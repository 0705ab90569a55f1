"""Process-wide services for compiled code: threads, compile-once, object cache, linking."""
