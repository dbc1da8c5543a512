"""The backends: each offers `unavailable(name, device_type, dtype)` and one function an op."""
