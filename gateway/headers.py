"""Names of response headers as multidict stores them.

With plain strings multidict folds their case again for every answer, and keeps two copies of each
for as long as a stream is open.
"""

from aiohttp import hdrs
from multidict import istr

CACHE_CONTROL = hdrs.CACHE_CONTROL
CONTENT_TYPE = hdrs.CONTENT_TYPE
SERVER = hdrs.SERVER
AGENT = istr("x-gateway-agent")
ATTEMPTS = istr("x-gateway-attempts")
BUFFERING = istr("X-Accel-Buffering")
CONVERSATION_ID = istr("x-conversation-id")
IGNORED = istr("x-gateway-ignored")
MEMORY = istr("x-gateway-memory")
TASK = istr("x-gateway-task")
REQUEST_ID = istr("x-request-id")
CONTENT_SECURITY_POLICY = istr("Content-Security-Policy")
CONTENT_TYPE_OPTIONS = istr("X-Content-Type-Options")
REFERRER_POLICY = istr("Referrer-Policy")
# The rate limit headers, by unit: the limit, the remainder, and the time until it is full.
LIMITS = {
    unit: tuple(istr(f"x-ratelimit-{what}-{unit}") for what in ("limit", "remaining", "reset"))
    for unit in ("requests", "tokens")
}
