"""Everything that knows aiohttp.web and is not a route: requests in, answers out."""
