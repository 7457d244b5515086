"""The demo: pictures made by code, a map of them, and a page that shows what was recognised."""
