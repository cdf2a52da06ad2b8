"""The algorithm, plain: each file but `world` has a twin of the same name in torch_ref."""
