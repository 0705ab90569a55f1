"""What a report says: in numbers, in words, as tables, pictures and a page."""
