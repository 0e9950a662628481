"""One packed forward and one head for every model that scores or learns."""
