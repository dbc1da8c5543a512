"""torch.library ops: schemas, fakes and autograd, one file an op."""
