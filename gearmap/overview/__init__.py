"""How a cluster is: what job servers list and nodes tell, as values."""
