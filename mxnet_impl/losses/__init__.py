"""The loss heads in MXNet: a folder that can be copied into another package as it is."""
