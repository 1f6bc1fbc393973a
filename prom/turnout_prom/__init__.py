"""Reading Prometheus' text format, where its own parser takes too long: see `exposition` and `search`."""
