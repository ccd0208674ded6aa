"""`sigd top`: what a daemon did since the last look, again and again."""
