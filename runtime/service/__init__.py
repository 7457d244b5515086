"""Answer other programs over HTTP: the server, its connections and its socket."""
