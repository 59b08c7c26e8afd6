"""The page at `/`: files for the browser, and the routes that serve them."""
