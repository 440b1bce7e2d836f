"""The onion, outermost first in `app.build`, and what adds to its answers or hears of its end."""
