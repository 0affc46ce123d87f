"""Stand-ins for the loaded model: vocabularies and a driver that obeys what a canvas fixes."""
