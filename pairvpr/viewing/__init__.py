"""Show maps, runs and tuned settings: pages for browsers, and recordings for Rerun's viewer."""
