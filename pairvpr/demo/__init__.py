"""The demo: pictures of a made-up town, a map of them, and a page that shows what was recognised."""
