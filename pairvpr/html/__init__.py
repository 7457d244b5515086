"""Build the HTML pages: document, charts, and albums of pictures."""
