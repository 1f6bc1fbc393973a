"""The load of workers and routers: scraped, summed over time, turned into the facts that scaling reads."""
