"""The algorithm, plain: each file has a twin of the same name in torch_ref."""
