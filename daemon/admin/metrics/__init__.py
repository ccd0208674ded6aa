"""sigd as Prometheus sees it: what is told, how it is worked out, and how it is rendered without holding the
loop up."""
