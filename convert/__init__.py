"""Foreign weight files to named arrays and back, without the frameworks that wrote them."""
