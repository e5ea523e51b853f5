"""What trained methods do to a model, from their arrays and the frozen base.

`changes` finds how the weights differ from the base's, whatever method made the difference;
`spectra` measures these differences and compares their subspaces; `truncation` judges the model
with differences that are cut to fewer singular values; `probes` runs the model and looks at what
its layers and attentions do with a method and without it.
"""
