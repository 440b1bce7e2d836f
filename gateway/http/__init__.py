"""Everything below the routes that uses aiohttp.web: request bodies, answers and streams."""
