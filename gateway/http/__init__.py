"""Everything that knows aiohttp.web and is not a route: bodies in, answers and streams out."""
