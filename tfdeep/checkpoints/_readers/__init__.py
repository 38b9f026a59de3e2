"""One reader for each format of weights. They import no model and change nothing."""
