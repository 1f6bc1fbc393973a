"""Workers' metrics, scraped now and then, so that a router learns of the load that other routers sent there."""
