"""The nets: one file a family, one function or class a net, found by `model_module_name` and `model_net_name`."""
