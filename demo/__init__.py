"""The whole loop on real data, through the product's public faces alone."""
