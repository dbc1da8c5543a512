"""The ops as PyTorch knows them: schemas, fakes, and the autograd functions over them."""
