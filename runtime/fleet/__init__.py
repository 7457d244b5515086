"""A fleet: maps of many robots, published as tiles that never change, to be searched together or in part."""
