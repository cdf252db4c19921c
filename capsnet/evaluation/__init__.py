"""Wing: trained models, tested and used."""
